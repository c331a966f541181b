"""A run that is trained within a second: base model, tokenizer, records and run.yaml."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.documents import save_small_model
from tests.small_tokenizer import write_small_tokenizer

import finetooth

SOURCES = Path(finetooth.__file__).resolve().parents[1]
VOCABULARY = 320
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"path": "base"},
    "data": {"train": "train.jsonl", "dev": 0.25, "template": "chatml", "max_length": 64},
    "training": {
        "num_train_epochs": 2,
        "global_batch_size": 4,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "warmup_steps": 0,
        "row_tokens": 128,
        "device": "cpu",
    },
    "evaluation": {"every": 4, "max_new_tokens": 12},
    "checkpoints": {"every": 2, "keep": 2},
}


def write_run(folder: Path, *, num_records: int = 20, **sections: dict[str, Any]) -> Path:
    """Writes base/, train.jsonl and run.yaml, whose paths are relative to the folder; returns run.yaml."""
    write_base(folder / "base")
    write_records(folder / "train.jsonl", num_records)
    settings = {
        name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {**SETTINGS, **sections}
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps({**settings, "output_dir": "run"}, indent=1))
    return path


def write_base(folder: Path, **settings: object) -> Path:
    """A fresh Qwen3 model of a few thousand parameters with its tokenizer."""
    save_small_model(folder, **{"vocab_size": VOCABULARY, **settings})
    write_small_tokenizer(folder)
    return folder


def write_records(path: Path, num_records: int) -> None:
    """Questions with answers of very unequal length."""
    lines = [
        json.dumps({"prompt": f"What is {number}?", "response": "four " * (number % 4) + f"is {number}."})
        for number in range(num_records)
    ]
    path.write_text("".join(line + "\n" for line in lines))


def start_process(*arguments: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts `finetooth` in a folder, as a process of its own."""
    search_path = os.pathsep.join(filter(None, [variables.pop("PYTHONPATH", ""), str(SOURCES)]))
    return subprocess.Popen(
        [sys.executable, "-m", "finetooth", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **variables, "PYTHONPATH": search_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_process(*arguments: str, folder: Path, **variables: str) -> tuple[int, str, str]:
    """Runs `finetooth` to its end; returns exit code, standard output and standard error."""
    process = start_process(*arguments, folder=folder, **variables)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr
