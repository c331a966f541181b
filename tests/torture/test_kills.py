"""Twenty kills at random moments of a run, and the resumed run is the uninterrupted one to the bit."""

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import run_process, start_process, write_run

NUM_KILLS = 20
CHANGING = ("seconds", "peak_memory_mb")
# Several forward passes per step, epochs of seven steps, and evaluations with answers: kills meet all of them.
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"max_steps": 60, "global_batch_size": 4, "packing": False},
    "evaluation": {"every": 4, "exact_match": "plain", "exact_match_records": 4, "max_new_tokens": 6},
    "checkpoints": {"every": 1, "keep": 2},
}

pytestmark = pytest.mark.torture


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the policy, of the last optimiser states, and of all that a run must repeat of metrics.jsonl."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [run / "final" / "model.safetensors", *sorted(last.glob("optimizer*.safetensors"))]
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    repeated = [{name: value for name, value in line.items() if name not in CHANGING} for line in lines]
    return found | {"metrics": hashlib.sha256(json.dumps(repeated).encode()).hexdigest()}


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path):
    write_run(tmp_path, num_records=36, **SETTINGS)
    started = time.monotonic()
    code, _, stderr = run_process("train", "run.yaml", "output_dir=whole", folder=tmp_path)
    assert code == 0, stderr
    # Loading comes first; a little of it is met too, and at each start a few steps are done.
    whole_seconds = time.monotonic() - started
    training_seconds = json.loads((tmp_path / "whole" / "summary.json").read_text())["seconds"]
    loading_seconds = whole_seconds - training_seconds
    generator = random.Random(20)
    num_kills, steps_at_kills = 0, set[int]()
    while num_kills < NUM_KILLS:
        process = start_process("train", "run.yaml", "output_dir=killed", "--resume", "auto", folder=tmp_path)
        deadline = time.monotonic() + loading_seconds + generator.random() * training_seconds / 8
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is not None:
            break  # it came to its end
        process.kill()
        process.communicate()
        num_kills += 1
        path = tmp_path / "killed" / "metrics.jsonl"
        steps_at_kills.add(path.read_text().count("\n") if path.exists() else 0)
        if num_kills < NUM_KILLS and (tmp_path / "killed" / "final").exists():
            break
    assert num_kills == NUM_KILLS, f"the run came to its end after {num_kills} kills"
    assert len(steps_at_kills) >= 5, "the kills met one place only"
    code, _, stderr = run_process(
        "train", "run.yaml", "output_dir=killed", "--resume", "auto", folder=tmp_path
    )
    assert code == 0, stderr
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
