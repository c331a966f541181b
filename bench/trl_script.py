"""Fine-tunes with TRL as its users write it, and notes on the side what was done and when.

python bench/trl_script.py JOB.json

JOB.json holds what the arm sets: `model` and `records`, the `settings` of TRL's SFTConfig, `lora` (those of
peft's LoraConfig, or null) and where to write the `notes`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Trains, saves, and writes the notes."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    on_processor = not torch.accelerator.is_available()  # where TRL refuses bf16 unless it is told so
    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(**job["settings"], use_cpu=on_processor),
        train_dataset=load_dataset("json", data_files=job["records"], split="train"),
        peft_config=None if job["lora"] is None else LoraConfig(**job["lora"]),
    )
    notes = _note(trainer)
    trainer.train()
    trainer.save_model(job["settings"]["output_dir"] + "/final")
    _finish(notes, trainer)
    Path(job["notes"]).write_text(json.dumps(notes))


def _note(trainer: Any) -> dict[str, Any]:
    """Notes that are filled in while the trainer trains: the end of each step, and the size of each batch."""
    from transformers import TrainerCallback

    notes: dict[str, Any] = {"step_ends": [], "batches": []}

    class Clock(TrainerCallback):
        def on_log(self, *_: Any, **__: Any) -> None:
            notes["step_ends"].append(time.time())

    collate = trainer.data_collator
    trainer.data_collator = lambda examples: _count(collate(examples), notes["batches"].append)
    trainer.add_callback(Clock())
    return notes


def _count(batch: dict[str, Any], note: Callable[[tuple[int, int, int]], None]) -> dict[str, Any]:
    """Passes a batch on; notes its tokens, targets and positions. Without a mask, no position is padding."""
    num_positions = batch["input_ids"].numel()
    num_tokens = int(batch["attention_mask"].sum()) if "attention_mask" in batch else num_positions
    note((num_tokens, int((batch["labels"][:, 1:] != -100).sum()), num_positions))
    return batch


def _finish(notes: dict[str, Any], trainer: Any) -> None:
    """Adds what is known at the end; what follows `ended` is no part of the measured run."""
    import torch

    from finetooth.base.devices import peak_resident_bytes

    notes["ended"] = time.time()
    notes["peak_memory_mb"] = peak_resident_bytes() / 1e6
    if torch.cuda.is_available():
        notes["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    history = trainer.state.log_history
    notes["losses"] = [line["loss"] for line in history if "loss" in line]
    notes["step_ends"] = notes["step_ends"][: len(notes["losses"])]  # the last line logged is a summary
    documents = list(_documents(trainer.train_dataset))
    per_step = trainer.args.gradient_accumulation_steps
    batches = notes.pop("batches")[: per_step * len(notes["losses"])]  # one batch more may have been fetched
    steps = [batches[start : start + per_step] for start in range(0, len(batches), per_step)]
    for place, name in enumerate(("num_tokens", "num_targets", "num_positions")):
        notes[name] = [sum(batch[place] for batch in step) for step in steps]
    from work import digest_of

    notes["digest"] = digest_of(documents)
    notes["lengths"] = [len(token_ids) for token_ids, _ in documents]


def _documents(dataset: Any) -> Iterator[tuple[list[int], list[bool]]]:
    """The documents as TRL prepared them, packed ones apart: token ids, and which are targets."""
    for row in dataset:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            token_ids = row["input_ids"][start : start + length]
            yield token_ids, [label != -100 for label in row["labels"][start : start + length]]
            start += length


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
