"""`finetooth env` tells what is here, in 80 columns and as JSON, and nothing that is secret."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from rich.console import Console

from finetooth import environment as environment_module
from finetooth.base.machine import Processor
from finetooth.environment import environment

RATES = {torch.float32: 72.4e9, torch.bfloat16: 1.61e9, torch.float16: 2.5e9}
VERSIONS = {"finetooth": "0.1.0", "python": "3.12.1", "bitsandbytes": None}
SHOWN = """\
finetooth     0.1.0
python        3.12.1
bitsandbytes  not installed

system        Linux-6.1
processor     AMD EPYC, 2 of 4 cores, 2 threads
instructions  avx2 avx512f; PyTorch computes with AVX512
memory        64.0 GB, 40.0 GB free
GPU           none that CUDA can use

training      on cpu in fp32, where settings say auto
attention     scaled_dot_product_attention, one document after the other
products      fp32 72.4, bf16 1.61, fp16 2.5 GFLOP/s per thread: bf16 does not
              pay

cache         cache: 2 prepared, 0.0 MB
hub           hub.example, offline
hub cache     /models
hub token     there is one
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that differs from machine to machine, settled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETOOTH_CACHE", "cache")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("prepared-1", "prepared-2"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    (tmp_path / "cache" / "prepared-1" / "ledger.jsonl").write_text("12345")
    processor = Processor("AMD EPYC", ("avx2", "avx512f"), cores=4, usable_cores=2)
    settled: dict[str, Any] = {
        "_versions": lambda: VERSIONS,
        "this_processor": lambda: processor,
        "host_memory": lambda: (64_000_000_000, 40_000_000_000),
        "matmul_rates": lambda device: RATES,
    }
    for name, value in settled.items():
        monkeypatch.setattr(environment_module, name, value)
    monkeypatch.setattr(environment_module.platform, "platform", lambda: "Linux-6.1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/models")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:password@hub.example/api")


def shown(**console: Any) -> tuple[dict[str, Any], str]:
    output = StringIO()
    return environment(console=Console(file=output, width=80, **console)), output.getvalue()


def test_the_text_in_full():
    assert shown()[1] == SHOWN


def test_the_object_holds_numbers_and_no_secret():
    result, text = shown()
    assert json.loads(json.dumps(result)) == result
    assert result["cache"] == {"folder": "cache", "prepared": 2, "bytes": 5}
    assert result["matrix_products"] == {"fp32": 72.4e9, "bf16": 1.61e9, "fp16": 2.5e9}
    assert not any(secret in json.dumps(result) + text for secret in ("hf_secret", "password"))


def test_a_gpu_is_told_with_its_memory_and_its_attention(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (79_000_000_000, 85_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100")
    fast = {torch.float32: 50e12, torch.bfloat16: 600e12}
    monkeypatch.setattr(environment_module, "matmul_rates", lambda device: fast)
    lines = shown()[1].splitlines()
    assert "GPU           NVIDIA H100, capability 9.0, 85.0 GB, 79.0 GB free" in lines
    assert "training      on cuda in bf16, where settings say auto" in lines
    assert "attention     varlen_attn, all documents of a row at once" in lines
    assert "products      fp32 5e+04, bf16 6e+05 GFLOP/s: bf16 pays" in lines


def test_what_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setattr(environment_module, "_LIBRARIES", ("torch", "no-such-library"))
    versions = environment_module._versions()
    assert versions["torch"] is not None
    assert versions["no-such-library"] is None
