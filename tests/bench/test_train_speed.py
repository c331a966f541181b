"""The benchmark: its arms do the same work, and it refuses to time arms that do not."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.documents import small_config

from finetooth.base.devices import DeviceManager
from finetooth.batching.schedule import Schedule

BENCH = Path(__file__).resolve().parents[2] / "bench"
TINY = {"--num-steps": 2, "--documents-per-step": 3, "--row-tokens": 256, "--repeats": 2, "--device": "cpu"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("train_speed")


def tiny_model(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(small_config(vocab_size=8192, max_position_embeddings=2048).to_dict()))
    return path


def run(bench: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    options = {**TINY, "--model": tiny_model(folder), "--out": folder / "speed.json", **settings}
    bench.main([str(part) for option in options.items() for part in option])
    return json.loads((folder / "speed.json").read_text())


def test_all_arms_do_the_same_work_and_are_timed(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = run(bench, tmp_path)
    names = ["finetooth, packed", "finetooth, padded", "plain transformers"]
    losses = [result["first_step"][name]["loss"] for name in names]
    norms = [result["first_step"][name]["grad_norm"] for name in names]
    assert losses == pytest.approx([losses[2]] * 3, rel=1e-5)
    assert norms == pytest.approx([norms[2]] * 3, rel=1e-4)
    assert result["num_documents"] == 6
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    for name in names:
        rates = result["tokens_per_second"][name]
        assert [len(rates[kind]) for kind in ("useful", "targets")] == [2, 2]
        assert rates["useful"] == sorted(rates["useful"])
        assert rates["useful"][0] / rates["targets"][0] == pytest.approx(
            result["num_tokens"] / result["num_targets"]
        )


def test_arms_that_train_other_tokens_are_not_timed(bench: Any, monkeypatch: pytest.MonkeyPatch):
    """Negative control: a baseline that also trains the prompts."""
    arms = importlib.import_module("arms")
    padded = arms._padded

    def unmasked(*arguments: Any) -> dict[str, torch.Tensor]:
        batch = padded(*arguments)
        return {**batch, "labels": torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)}

    monkeypatch.setattr(arms, "_padded", unmasked)
    documents = arms.RandomDocuments(np.array([16, 30, 22]))
    totals = documents.lengths, documents.loss_weight_totals, documents.num_targets
    schedule = Schedule(*totals, seed=0, global_batch_size=3)
    config, devices = small_config(vocab_size=8192), DeviceManager("cpu", "fp32")
    built = arms.build_arms(config, documents, schedule, devices, row_tokens=64)
    with pytest.raises(SystemExit) as caught:
        bench.require_equal(built, schedule.step(1), precision="fp32")
    assert str(caught.value).startswith("finetooth, packed: StepResult(loss=")
    assert str(caught.value).endswith("; this is not the same work")


def test_a_mistaken_option_is_one_sentence(bench: Any, tmp_path: Path):
    with pytest.raises(SystemExit) as caught:
        run(bench, tmp_path, **{"--documents": tmp_path / "absent.yaml"})
    assert str(caught.value) == f"{tmp_path}/absent.yaml: no such file; check the path"
