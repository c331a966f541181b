"""The arms of TRL: as it comes, and in the ways that its documentation tells to make it faster."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from processes import run_process
from runs import Arm, Run
from work import LEARNING_RATE, LORA_ALPHA, LORA_RANK, MAX_GRAD_NORM, WEIGHT_DECAY, Work

AS_IT_COMES = "TRL as it comes"
# TRL's default; of more documents in a step, batches of up to so many are accumulated.
_DOCUMENTS_AT_ONCE = 8
SettingsOf = Callable[[Work], dict[str, Any]]


def trl_arms(*, bf16_pays: bool, on_gpu: bool) -> list[Arm]:
    """All of them for a machine.

    TRL computes in bf16 unless told otherwise. On a processor without instructions for it that takes up to
    a hundred times as long, so there even the arm as it comes computes in fp32.
    """
    dtypes = ["bf16"] if on_gpu else ["bf16", "fp32"] if bf16_pays else ["fp32"]
    arms = [_arm(AS_IT_COMES, lambda _: {"bf16": "bf16" in dtypes})]
    for dtype in dtypes:
        arms += [
            _tuned(f"packed {dtype}", _packed, dtype=dtype),
            _tuned(f"padding-free {dtype}", _padding_free, dtype=dtype, keeps_order=True),
            _tuned(f"grouped {dtype}", _grouped, dtype=dtype),
        ]
    return arms + (list(_gpu_arms()) if on_gpu else [])


def _arm(name: str, settings_of: SettingsOf, **facts: bool) -> Arm:
    """settings_of: what differs from TRL's defaults beyond the equal settings."""

    def run(work: Work, folder: Path, limit: float) -> Run:
        settings = _equal_settings(work, folder) | settings_of(work)
        job = {"model": str(work.base), "records": str(work.ordered), "settings": settings, "lora": None}
        if work.lora:
            job["lora"] = {"r": LORA_RANK, "lora_alpha": LORA_ALPHA, "target_modules": "all-linear"}
        notes, path = folder / "notes.json", folder / "job.json"
        folder.mkdir(parents=True)
        path.write_text(json.dumps({**job, "notes": str(notes)}, indent=1))
        script = Path(__file__).with_name("trl_script.py")
        process = run_process([sys.executable, str(script), str(path)], folder, limit=limit)
        return Run(
            started=process.started,
            precision="bf16" if settings["bf16"] else "fp32",
            gpu_busy=process.gpu_busy,
            recompiled=process.recompiled,
            **json.loads(notes.read_text()),
        )

    return Arm(name, run, **facts)


def _equal_settings(work: Work, folder: Path) -> dict[str, Any]:
    """What makes TRL do the same work: the same documents in each step, one optimiser, every loss told."""
    at_once = max(n for n in range(1, _DOCUMENTS_AT_ONCE + 1) if work.documents_per_step % n == 0)
    return {
        "output_dir": str(folder / "run"),
        "max_steps": work.num_steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": work.documents_per_step // at_once,
        "max_length": work.max_length,
        "assistant_only_loss": True,
        "train_sampling_strategy": "sequential",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "logging_steps": 1,
        "report_to": "none",
        "seed": work.seed,
    }


def _tuned(
    name: str,
    settings_of: SettingsOf,
    *,
    dtype: str = "bf16",
    keeps_order: bool = False,
    model: Mapping[str, object] | None = None,
) -> Arm:
    """Without recomputing activations; model: how transformers loads it."""

    def settings(work: Work) -> dict[str, Any]:
        kwargs = {**({"dtype": "bfloat16"} if work.is_bf16_kept else {}), **(model or {})}
        common = {"gradient_checkpointing": False, "bf16": dtype == "bf16", "model_init_kwargs": kwargs}
        return common | settings_of(work)

    return _arm(f"TRL {name}", settings, keeps_order=keeps_order, is_tuned=True)


def _packed(work: Work) -> dict[str, Any]:
    """Rows of `max_length` tokens, as many in a step as hold about its documents.

    One at a time, as attention without a kernel for it takes a dense mask.
    """
    return {
        "packing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": _rows_per_step(work),
    }


def _packed_at_once(work: Work) -> dict[str, Any]:
    """The same for kernels that need no mask."""
    return {
        "packing": True,
        "per_device_train_batch_size": _rows_per_step(work),
        "gradient_accumulation_steps": 1,
    }


def _rows_per_step(work: Work) -> int:
    return max(1, round(work.documents_per_step * work.mean_length / work.max_length))


def _padding_free(work: Work) -> dict[str, Any]:
    """Eight documents laid end to end; TRL wants no limit on their length then, and none is longer."""
    return {"padding_free": True, "max_length": None}


def _grouped(work: Work) -> dict[str, Any]:
    return {"train_sampling_strategy": "group_by_length"}


def _gpu_arms() -> Iterator[Arm]:
    """Kernels that TRL's documentation names, where their packages are installed."""
    if importlib.util.find_spec("flash_attn"):
        yield _tuned("flash attention 2", _packed_at_once, model={"attn_implementation": "flash_attention_2"})
    if importlib.util.find_spec("flash_attn_interface"):
        yield _tuned("flash attention 3", _packed_at_once, model={"attn_implementation": "flash_attention_3"})
    if importlib.util.find_spec("kernels"):
        hub = {"attn_implementation": "kernels-community/flash-attn2"}
        yield _tuned("attention kernel", _packed_at_once, model=hub)
        yield _tuned("all kernels", _packed_at_once, model={**hub, "use_kernels": True})
    if importlib.util.find_spec("liger_kernel"):
        yield _tuned("Liger", lambda work: _packed(work) | {"use_liger_kernel": True})
    yield _tuned("compiled", lambda work: _packed(work) | {"torch_compile": True})
