"""`finetooth env`: versions, processor, memory, GPUs, what training computes with here; no secrets."""

import platform
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, get_token
from rich.console import Console

from finetooth import __version__
from finetooth.base.devices import DeviceManager
from finetooth.base.machine import gigabytes, host_memory, this_processor
from finetooth.base.precision_probe import bf16_pays, matmul_rates
from finetooth.base.terminal import print_line
from finetooth.data.cache import default_cache_folder
from finetooth.model.attention import takes_varlen

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "bitsandbytes", "numpy")
_WIDTH_OF_NAMES = 14
_FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def environment(*, console: Console) -> dict[str, Any]:
    """Prints what there is to know about this machine before training; returns the same as one JSON object.

    Memory is in bytes, rates of matrix products in floating-point operations per second.
    """
    devices = DeviceManager()
    rates = matmul_rates(devices.device)
    result = {
        "versions": _versions(),
        "system": platform.platform(),
        "processor": _processor(),
        "memory": dict(zip(("total", "free"), host_memory(), strict=True)),
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())],
        "training": {
            "device": str(devices.device),
            "precision": devices.precision,
            "attention": _attention(devices),
        },
        "matrix_products": {_FORMATS[dtype]: rate for dtype, rate in rates.items()},
        "bf16_pays": bf16_pays(rates),
        "cache": _cache(default_cache_folder()),
        "hub": _hub(),
    }
    for name, text in _rows(result):
        for line in textwrap.wrap(text, max(20, console.width - _WIDTH_OF_NAMES)) or [""]:
            print_line(console, f"{name:<{_WIDTH_OF_NAMES}}{line}".rstrip())
            name = ""
    return result


def _versions() -> dict[str, str | None]:
    """By name; None for what is not installed."""
    versions: dict[str, str | None] = {"finetooth": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _processor() -> dict[str, Any]:
    processor = this_processor()
    return {
        "name": processor.name,
        "instructions": list(processor.instructions),
        "cores": processor.cores,
        "usable_cores": processor.usable_cores,
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu(number: int) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info(number)
    major, minor = torch.cuda.get_device_capability(number)
    name = torch.cuda.get_device_name(number)
    return {"name": name, "capability": f"{major}.{minor}", "total": total, "free": free}


def _attention(devices: DeviceManager) -> str:
    if takes_varlen(devices.device, devices.compute_dtype):
        return "varlen_attn, all documents of a row at once"
    return "scaled_dot_product_attention, one document after the other"


def _cache(folder: Path) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    prepared = [path for path in folder.glob("prepared-*") if path.is_dir()]
    return {
        "folder": str(folder),
        "prepared": len(prepared),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _hub() -> dict[str, Any]:
    """How models named by their hub names are found; of a token only whether there is one."""
    return {
        "cache": constants.HF_HUB_CACHE,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "host": urlsplit(constants.ENDPOINT).hostname,  # without a name and password that may stand before it
        "has_token": get_token() is not None,
    }


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people: names and what they are, with empty lines between what belongs together."""
    training, cache, hub = result["training"], result["cache"], result["hub"]
    gpus = [
        ("GPU", f"{gpu['name']}, capability {gpu['capability']}, {_amounts(gpu)}") for gpu in result["gpus"]
    ]
    on = f"on {training['device']} in {training['precision']}, where settings say auto"
    return [
        *((name, number or "not installed") for name, number in result["versions"].items()),
        ("", ""),
        ("system", result["system"]),
        *_processor_rows(result["processor"]),
        ("memory", _amounts(result["memory"])),
        *(gpus or [("GPU", "none that CUDA can use")]),
        ("", ""),
        ("training", on),
        ("attention", training["attention"]),
        ("products", _rates(result)),
        ("", ""),
        ("cache", f"{cache['folder']}: {cache['prepared']:,} prepared, {gigabytes(cache['bytes'])}"),
        ("hub", f"{hub['host']}, {'offline' if hub['offline'] else 'asked for what the cache lacks'}"),
        ("hub cache", hub["cache"]),
        ("hub token", "there is one" if hub["has_token"] else "none"),
    ]


def _processor_rows(processor: dict[str, Any]) -> list[tuple[str, str]]:
    threads = f"{processor['threads']} thread{'' if processor['threads'] == 1 else 's'}"
    cores = f"{processor['usable_cores']} of {processor['cores']} cores"
    instructions = " ".join(processor["instructions"]) or "not told"
    return [
        ("processor", f"{processor['name']}, {cores}, {threads}"),
        ("instructions", f"{instructions}; PyTorch computes with {processor['kernels']}"),
    ]


def _rates(result: dict[str, Any]) -> str:
    rates = [f"{name} {rate / 1e9:,.3g}" for name, rate in result["matrix_products"].items()]
    per_thread = " per thread" if result["training"]["device"] == "cpu" else ""
    pays = "bf16 pays" if result["bf16_pays"] else "bf16 does not pay"
    return f"{', '.join(rates)} GFLOP/s{per_thread}: {pays}"


def _amounts(memory: dict[str, int]) -> str:
    return f"{gigabytes(memory['total'])}, {gigabytes(memory['free'])} free"
