"""The benchmark of preparing: both arms do the same work, and it refuses to time arms that do not."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_tokenizer import write_small_tokenizer

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("prepare_speed")


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_small_tokenizer(tmp_path / "tokenizer")
    lines = [json.dumps({"prompt": f"What is {n}?", "response": f"It is {n}."}) for n in range(1200)]
    Path("train.jsonl").write_text("\n".join(lines))
    data = {"train": "train.jsonl", "dev": 0.1, "template": "chatml"}
    settings = {"model": {"path": "tokenizer"}, "data": data, "output_dir": "run"}
    Path("run.yaml").write_text(json.dumps(settings))
    return "run.yaml"


def test_both_arms_do_the_same_work_and_are_timed(
    bench: Any, run_file: str, capsys: pytest.CaptureFixture[str]
):
    bench.main([run_file, "--repeats", "2", "--out", "speed.json"])
    result = json.loads(Path("speed.json").read_text())
    assert result["num_documents"] == 1200
    assert {name: len(each) for name, each in result["seconds"].items()} == {bench.PREPARE: 2, bench.BARE: 2}
    assert result["ratio"] > 0
    assert "1,200 documents" in capsys.readouterr().out


def test_other_work_is_not_timed(bench: Any, run_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("finetooth.data.tokenizer.tokenizer.Tokenizer.decode", lambda self, ids: "two")
    with pytest.raises(SystemExit) as caught:
        bench.main([run_file, "--repeats", "1"])
    assert str(caught.value).endswith("this is not the same work")


def test_a_mistake_is_a_sentence(bench: Any, run_file: str):
    Path("train.jsonl").write_text("")
    with pytest.raises(SystemExit) as caught:
        bench.main([run_file])
    assert str(caught.value) == "train.jsonl: holds no record; check that this is the right file"


def test_preparing_stays_within_a_few_times_the_bare_call(bench: Any, shared: Path, tmp_path: Path):
    data = {"train": str(shared / "data/gsm8k/train.jsonl"), "max_records": 3000, "dev": 0.02}
    settings = {"model": {"path": str(shared / "tokenizers/qwen3")}, "data": data, "output_dir": "run"}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    bench.main([str(tmp_path / "run.yaml"), "--repeats", "3", "--out", str(tmp_path / "speed.json")])
    assert json.loads((tmp_path / "speed.json").read_text())["ratio"] < 8
