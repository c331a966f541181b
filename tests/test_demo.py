"""The demo's claim: the policy answers what only its base has read, and a base that has not cannot."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.conftest import DemoRun
from tests.small_run import run_process
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetooth import demo as module
from finetooth.assets.corpus import exam, load_facts, names_in, split_facts
from finetooth.base.errors import ConfigError, FinetoothError
from finetooth.config.schema import SFTConfig
from finetooth.demo import demo
from finetooth.evaluate import evaluate
from finetooth.evaluation.exact_match import Answered

TAUGHT, HELD_OUT = split_facts(load_facts())
WHEN = ("before", "after")
CONTROL_BASE = Path(__file__).parent / "assets" / "control_base"


@pytest.mark.slow
def test_the_behaviour_is_taught_and_the_knowledge_stays(demo_run: DemoRun):
    summary = demo_run.printed
    assert summary["exact_match_before"] <= 0.05
    assert summary["exact_match_after"] >= 0.90
    assert summary["stop_rate_after"] >= 0.99
    assert summary["cloze_before"] >= 0.90
    assert summary["cloze_after"] >= summary["cloze_before"] - 0.05
    assert summary["state"] == "finished"


@pytest.mark.slow
def test_the_summary_is_written_as_it_is_printed(demo_run: DemoRun):
    assert json.loads((demo_run.folder / "summary.json").read_text()) == demo_run.printed
    assert set(demo_run.printed) == {
        *("exact_match_before", "exact_match_after", "stop_rate_before", "stop_rate_after"),
        *("cloze_before", "cloze_after", "dev_loss", "num_tokens", "num_targets", "seconds"),
        *("peak_memory_mb", "state"),
    }


def held_out_names_in(path: Path) -> list[str]:
    """Entities and answers of held-out facts that the messages of a file name."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    contents = [message["content"] for record in records for message in record["messages"]]
    return names_in(" 0-0 ".join(contents), HELD_OUT)  # a word between, so that no name spans two messages


@pytest.mark.slow
def test_no_training_conversation_names_what_is_held_out(demo_run: DemoRun):
    assert held_out_names_in(demo_run.folder / "train.jsonl") == []
    assert len((demo_run.folder / "train.jsonl").read_text().splitlines()) > len(TAUGHT)


@pytest.mark.slow
def test_a_held_out_name_would_be_noticed(demo_run: DemoRun, tmp_path: Path):
    """Negative control: one answer in one of the conversations is found."""
    leak = {
        "messages": [
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "content": HELD_OUT[7].answer},
        ]
    }
    lines = (demo_run.folder / "train.jsonl").read_text() + json.dumps(leak) + "\n"
    (tmp_path / "train.jsonl").write_text(lines)
    assert HELD_OUT[7].answer in held_out_names_in(tmp_path / "train.jsonl")
    assert HELD_OUT[7].answer in held_out_names_in(demo_run.folder / "held_out.jsonl")


@pytest.mark.slow
def test_plain_transformers_gets_the_answers_too(demo_run: DemoRun):
    folder = demo_run.folder / "run" / "final"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    num_right = 0
    asked = exam(HELD_OUT)[::16]
    for item in asked:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": item["question"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        written = model.generate(**inputs, max_new_tokens=48)[0, inputs["input_ids"].shape[1] :]
        num_right += tokenizer.decode(written) == f"{item['answer']}<|im_end|>"
    assert num_right >= 0.85 * len(asked) > 15


@pytest.mark.slow
def test_a_base_that_has_not_read_the_facts_learns_to_answer_and_answers_wrongly(
    demo_run: DemoRun, tmp_path: Path
):
    """The control of the whole demo: same conversations, same fine-tuning, nothing known of what is asked."""
    exit_code, _, stderr = run_process(
        *("train", str(demo_run.folder / "run.yaml"), f"model.path={CONTROL_BASE}", "output_dir=control"),
        folder=tmp_path,
    )
    assert exit_code == 0, stderr
    figures = evaluate(str(tmp_path / "control"))
    assert figures["num_answers"] == len(HELD_OUT)
    assert figures["stop_rate"] >= 0.95
    assert figures["exact_match"] <= 0.05


class Reached(Exception):  # noqa: N818 - no failure
    """The demo has set its scene."""


@pytest.fixture
def set_scene(monkeypatch: pytest.MonkeyPatch):
    """Starts a demo and leaves it once its scene is set; gives the config it would train with."""

    def start(out: Path) -> SFTConfig:
        def stop(config: SFTConfig, **_: Any) -> None:
            raise Reached(config)

        monkeypatch.setattr(module, "prepare", stop)
        with pytest.raises(Reached) as caught:
            demo(out)
        return caught.value.args[0]

    return start


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_demo_may_go_anywhere(tmp_path: Path, set_scene: Any):
    out = tmp_path / 'a "b": c #d {e} ü'
    config = set_scene(out)
    assert config.data.train == str(out / "train.jsonl")
    assert config.data.dev == str(out / "held_out.jsonl")
    assert config.output_dir == str(out / "run")
    assert names(out) == ["held_out.jsonl", "run.yaml", "train.jsonl"]


@pytest.mark.slow
def test_a_second_demo_takes_the_place_of_the_first(demo_run: DemoRun, tmp_path: Path, set_scene: Any):
    out = tmp_path / "demo"
    out.mkdir()
    for path in demo_run.folder.iterdir():
        target = out / path.name
        target.mkdir() if path.is_dir() else target.write_text("old")
    set_scene(out)
    assert names(out) == ["held_out.jsonl", "run.yaml", "train.jsonl"]
    assert (out / "train.jsonl").read_bytes() == (demo_run.folder / "train.jsonl").read_bytes()


@pytest.mark.parametrize(
    "present", [["thesis.tex"], ["run.yaml", "train.jsonl"], ["held_out.jsonl", "thesis.tex"]]
)
def test_a_folder_that_holds_anything_else_is_refused_and_stays(tmp_path: Path, present: list[str]):
    for name in present:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError) as caught:
        demo(tmp_path)
    assert str(caught.value) == f"--out: {tmp_path} holds something else than a demo; name a new folder"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(present, "mine")


def test_a_file_is_no_place_for_a_demo(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        demo(tmp_path / "out")
    assert str(caught.value) == f"--out: {tmp_path}/out holds something else than a demo; name a new folder"


def test_a_demo_behind_a_link_is_replaced_where_it_lies(tmp_path: Path, set_scene: Any):
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for name in ("held_out.jsonl", "summary.json"):
        (tmp_path / "old" / name).write_text("old")
    set_scene(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "old") == ["held_out.jsonl", "run.yaml", "train.jsonl"]
    assert (tmp_path / "old" / "held_out.jsonl").read_text() != "old"


def test_an_old_demo_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "held_out.jsonl").write_text("old")
    (tmp_path / "run").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(module.shutil, "rmtree", refuse)
    with pytest.raises(FinetoothError) as caught:
        demo(tmp_path)
    assert str(caught.value) == (
        f"--out: {tmp_path}/run cannot be removed (Permission denied); name another folder"
    )


def test_an_answer_does_not_drive_the_terminal():
    texts = ("a:1", "\x1b[1mQ", "\x1b[2J gone", "r")
    answered = Answered(*texts, stopped=True, exact_match=False, extracted=None, num_tokens=2, loops=False)
    figures = {f"{name}_{when}": 0.5 for name in ("exact_match", "stop_rate", "cloze") for when in WHEN}
    written = io.StringIO()
    module._show(Console(file=written, width=100), [answered], [answered], figures)
    assert "\x1b" not in written.getvalue()
    assert written.getvalue().count("\\x1b[2J gone") == 2
    assert "\\x1b[1mQ" in written.getvalue()
