"""`finetooth plan` says what a run will do and hold, warns of what will not do, and loads nothing for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import SOURCES, write_run
from typer.testing import CliRunner, Result

from finetooth import plan as plan_module
from finetooth.base.machine import Gpu, Machine, Processor
from finetooth.cli import app
from finetooth.model.recompute import LADDER
from finetooth.training.footprint import KEPT

GB = 1_000_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small run, on a machine of 16 GB."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "this_machine", lambda: Machine(16 * GB, 12 * GB))
    monkeypatch.setattr(plan_module, "product_rate", lambda: 50e9)
    monkeypatch.setattr(plan_module, "this_processor", lambda: Processor("plain", ("avx2",), 2, 2))
    write_run(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "run.yaml", *arguments], prog_name="finetooth")


def planned(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_what_it_says_in_full():
    assert run().stdout == (
        "records       train.jsonl: 17 kept of 17\n"
        "documents     17, the longest of 27 tokens\n"
        "tokens        412 per epoch, 32% of them targets\n"
        "steps         10, 5 per epoch, 3.4 documents each\n"
        "rows          up to 1 per rank and step, 0% of it padding\n"
        "load          1 rank, the busiest 1.00 times the mean\n"
        "largest pass  102 tokens, in step 10\n"
        "parameters    0.1 MB\n"
        "gradients     0.1 MB\n"
        "optimizer     0.2 MB\n"
        "copies        0.0 MB\n"
        "activations   0.5 MB\n"
        "logits        0.1 MB\n"
        "checkpoint    0.3 MB\n"
        "libraries     400.0 MB\n"
        "together      about 401.4 MB of 12.0 GB per device: fits\n"
        "time          roughly 0 s to 0 s of steps, from 50 GFLOP/s of matrix products; "
        "--measure tells better\n"
    )


def test_the_plan_is_what_training_does():
    told = planned()
    done = CliRunner().invoke(app, ["train", "run.yaml", "--json"])
    assert done.exit_code == 0, done.stderr
    schedule = json.loads(Path("run/schedule.json").read_text())
    assert {key: schedule[key] for key in told["schedule"]} == told["schedule"]


def test_time_is_told_roughly_where_the_rate_is_known(monkeypatch: pytest.MonkeyPatch):
    told = planned()["time"]
    assert told["basis"] == "matrix products"
    assert 0 < told["least"] < told["most"]
    monkeypatch.setattr(plan_module, "product_rate", lambda: 100e9)
    assert planned()["time"]["most"] == pytest.approx(told["most"] / 2)
    assert planned("max_steps=40")["time"]["most"] > told["most"]
    for elsewhere in (("--world", "2"), ("--gpu-memory", "80GB"), ("precision=bf16",)):
        assert planned(*elsewhere)["time"] is None
    knows_bf16 = Processor("one that may take bf16", ("avx512f", "avx512_bf16"), 2, 2)
    monkeypatch.setattr(plan_module, "this_processor", lambda: knows_bf16)
    assert planned()["time"] is None
    assert planned("precision=fp32")["time"] is not None


def test_another_machine_is_planned_for():
    told = planned("--world", "4", "--gpu-memory", "80GB")
    assert (told["world"], told["memory"]["available"]) == (4, 80 * GB)
    assert told["load"]["rows"] == 1
    assert told["load"]["imbalance"] > 1
    assert told["memory"]["copies"] > 0  # bf16 on a GPU


def test_the_gpu_of_this_machine_is_planned_for(monkeypatch: pytest.MonkeyPatch):
    gpus = (Gpu("NVIDIA L4", 24 * GB, 23 * GB), Gpu("NVIDIA L4", 24 * GB, 20 * GB))
    monkeypatch.setattr(plan_module, "this_machine", lambda: Machine(16 * GB, 12 * GB, gpus))
    assert planned("training.device=auto")["memory"]["available"] == 20 * GB
    assert planned("training.device=cpu")["memory"]["available"] == 12 * GB


def test_ranks_with_less_than_a_row_are_warned_of():
    said = (
        "training.global_batch_size: a step gives each of 2 ranks 41 tokens, less than a row of 128; "
        "use fewer ranks, or larger steps"
    )
    assert planned("--world", "2")["warnings"] == [said]
    assert run("--world", "2").stdout.endswith(said + "\n")
    assert planned("--world", "2", "max_length=32", "row_tokens=32")["warnings"] == []


def test_where_memory_is_short_layers_are_computed_again_or_it_says_what_needs_less():
    whole = planned()["memory"]
    assert (whole["fits"], whole["recompute"]) == (True, "nothing")
    needed = planned("--gpu-memory", "80GB")["memory"]["total"]
    tight = planned("--gpu-memory", f"{(needed - 50_000) / 1e6:.2f}MB")["memory"]
    assert tight["fits"]
    assert tight["recompute"] != "nothing"
    short = run("--gpu-memory", "0.5MB").stdout
    assert "per device: does not fit, recompute: all\n" in short
    assert short.splitlines()[-1].startswith("memory: about ")
    assert short.splitlines()[-1].endswith(f" are needed, and 0.5 MB are free; {plan_module._FITTING}")
    fixed = planned("--gpu-memory", "0.5MB", "recompute=nothing")["memory"]
    assert (fixed["fits"], fixed["recompute"]) == (False, "nothing")


def test_what_can_be_computed_again_is_what_training_knows():
    assert tuple(KEPT) == LADDER


def test_shared_parameters_and_states_kept_by_the_host_take_less():
    alone = planned("--world", "4")["memory"]
    shared = planned("--world", "4", "shard=all")["memory"]
    assert 4 * shared["optimizer"] == pytest.approx(alone["optimizer"], abs=4)
    assert 4 * shared["parameters"] == pytest.approx(alone["parameters"], abs=4)
    assert planned("offload_optimizer=true")["memory"]["optimizer"] == 0


def test_a_size_that_is_none_is_refused():
    result = run("--gpu-memory", "much")
    assert (result.exit_code, result.stderr) == (2, "--gpu-memory: found 'much'; write e.g. 80GB\n")


def test_no_torch_is_loaded(folder: Path):
    code = "import sys; from finetooth.cli import app\n"
    code += "app(['plan', 'run.yaml'], standalone_mode=False)\n"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    environment = {"PYTHONPATH": str(SOURCES), "PATH": "", "FINETOOTH_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode == 0
