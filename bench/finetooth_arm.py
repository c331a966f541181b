"""The arm of finetooth: its command line in a process of its own, and what the run directory tells of it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetooth.batching.packing import forward_passes, layout_of
from finetooth.batching.row_lengths import padded_length, row_lengths
from finetooth.batching.schedule import schedule_of
from finetooth.config.load import load_config
from finetooth.data.store import DocumentStore, open_store
from processes import Ended, run_process
from runs import Run
from work import LEARNING_RATE, LORA_ALPHA, LORA_RANK, MAX_GRAD_NORM, WEIGHT_DECAY, Work, digest_of


def run_finetooth(work: Work, folder: Path, limit: float, **training: Any) -> Run:
    """Trains with the command line, as anybody would; `training`: further settings."""
    settings: dict[str, Any] = {
        "model": {"path": str(work.base)},
        "data": {
            "train": str(work.records),
            "dev": None,
            "max_length": work.max_length,
            "on_long_document": "error",
            "on_duplicate": "keep",
            "cache_dir": str(folder / "cache"),
        },
        "training": {
            "max_steps": work.num_steps,
            "global_batch_size": work.documents_per_step,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": MAX_GRAD_NORM,
            "precision": work.precision,
            "seed": work.seed,
            **training,
        },
        # TRL measures nothing besides the loss of its steps
        "evaluation": {"every": 0, "train_documents": 1},
        "checkpoints": {"every": 0},
        "output_dir": str(folder / "run"),
    }
    if work.lora:
        settings["adapter"] = {"type": "lora", "r": LORA_RANK, "alpha": LORA_ALPHA, "train_tokens": []}
    folder.mkdir(parents=True)
    path = folder / "run.yaml"
    path.write_text(json.dumps(settings, indent=1))
    ended = run_process([sys.executable, "-m", "finetooth", "train", str(path)], folder, limit=limit)
    return _read_finetooth(path, ended)


def _read_finetooth(run_file: Path, ended: Ended) -> Run:
    config = load_config(run_file)
    run = Path(config.output_dir)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "grad_norm" in line]
    device = json.loads((run / "environment.json").read_text())["device"]
    (manifest,) = (run.parent / "cache").rglob("prepared.json")
    store = open_store(manifest.parent / "train")
    on_gpu = not device.startswith(("cpu", "mps"))
    return Run(
        started=ended.started,
        ended=ended.ended,
        step_ends=[line["time"] for line in lines],
        losses=[line["loss"] for line in lines],
        num_tokens=[line["num_tokens"] for line in lines],
        num_targets=[line["num_targets"] for line in lines],
        num_positions=_positions(run_file, store, "cuda" if on_gpu else "cpu"),
        digest=digest_of(_documents(store)),
        lengths=store.lengths.tolist(),
        precision=device.rpartition(", ")[2],
        peak_memory_mb=lines[-1]["peak_memory_mb"] if on_gpu else ended.peak_memory_mb,
        gpu_busy=ended.gpu_busy,
        recompiled=ended.recompiled,
    )


def _documents(store: DocumentStore) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number in range(store.num_documents):
        document = store.document(number)
        yield document.token_ids, document.loss_weights > 0


def _positions(run_file: Path, store: DocumentStore, device_type: str) -> list[int]:
    """Positions that each step computed: those of its rows, each as long as the longest beside it."""
    training = load_config(run_file).training
    schedule, layout = schedule_of(training, store), layout_of(training)
    among = row_lengths(schedule, layout, device_type=device_type)
    positions: list[int] = []
    for step in schedule.steps():
        passes = forward_passes(schedule.rows(step, layout=layout), layout.rows_at_once)
        positions.append(sum(len(rows) * padded_length(rows, store.lengths, among) for rows in passes))
    return positions
