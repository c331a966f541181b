"""Twenty kills at random moments of a run, and the resumed run is the uninterrupted one to the bit."""

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import start_process, write_run

NUM_KILLS = 20
CHANGING = ("seconds", "time", "peak_memory_mb")
# Several forward passes per step, dropout, short epochs, evaluations with answers: kills meet all of them.
EXAM = {"exact_match": "plain", "exact_match_records": 2, "max_new_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"max_steps": 300, "global_batch_size": 4, "packing": False, "dropout": 0.2},
    "evaluation": {"every": 7, "train_documents": 4, **EXAM},
    "checkpoints": {"every": 1, "keep": 2},
}

pytestmark = pytest.mark.torture


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the policy, the last optimiser states, and all that a run must repeat of metrics.jsonl."""
    last = max((run / "checkpoints").glob("step-*"))
    files = sorted([*(run / "final").glob("*.safetensors"), *last.glob("optimizer*.safetensors")])
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    repeated = [{name: value for name, value in line.items() if name not in CHANGING} for line in lines]
    return found | {"metrics": hashlib.sha256(json.dumps(repeated).encode()).hexdigest()}


def finish(folder: Path, output: str) -> None:
    """Trains to the end, however busy the machine is."""
    process = start_process("train", "run.yaml", f"output_dir={output}", "--resume", "auto", folder=folder)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr


def last_step(run: Path) -> int:
    """The last step of which metrics.jsonl has a complete line; 0 where there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines[-2:]), default=0)


@pytest.mark.parametrize("adapter", [{}, {"type": "lora", "lora_dropout": 0.1}], ids=["full", "lora"])
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, adapter: dict[str, Any]):
    write_run(tmp_path, num_records=36, **SETTINGS, adapter=adapter)
    finish(tmp_path, "whole")
    generator = random.Random(20)
    steps_at_kills: list[int] = []
    for _ in range(NUM_KILLS):
        process = start_process("train", "run.yaml", "output_dir=killed", "--resume", "auto", folder=tmp_path)
        beyond = max(steps_at_kills, default=0) + generator.randint(1, 5)
        while last_step(tmp_path / "killed") < beyond:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        time.sleep(generator.random() * 0.2)  # somewhere within a few steps
        process.kill()
        process.communicate()
        steps_at_kills.append(last_step(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "final").exists(), "every kill met the training"
    finish(tmp_path, "killed")
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
