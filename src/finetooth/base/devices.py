"""DeviceManager: which device computes, and in which precision."""

import contextlib
import re
import resource
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import torch

from finetooth.base.errors import ConfigError, problem
from finetooth.base.precision_probe import bf16_pays_on_cpu

Precision = Literal["fp32", "bf16", "bf16-pure", "fp16"]
_STATUS = Path("/proc/self/status")


class DeviceManager:
    """The device a policy lives on and the precision it computes in.

    device:     auto (cuda → mps → cpu), cuda, cuda:1, mps, cpu.
    local_rank: which of this machine's GPUs cuda means, where several processes share the work.
    precision: fp32; bf16 or fp16 (both compute under autocast, with float32 parameters and optimiser
               states; fp16 with a gradient scaler); bf16-pure (parameters, gradients and states are
               bf16 too, updated with stochastic rounding); auto: bf16 on GPUs that have it, fp16 on
               older ones, bf16 on a CPU whose products are much faster in it, fp32 elsewhere.
    Raises ConfigError for a device that is not there or a precision it has not.
    mps computes in fp32 only, and is untested.
    """

    def __init__(
        self, device: str = "auto", precision: Precision | Literal["auto"] = "auto", *, local_rank: int = 0
    ):
        self.device = _choose_device(device, local_rank)
        self.precision: Precision = _choose_precision(self.device, precision)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of matrix products and attention."""
        if self.precision == "fp32":
            return torch.float32
        return torch.float16 if self.precision == "fp16" else torch.bfloat16

    @property
    def parameter_dtype(self) -> torch.dtype:
        """The type in which trained parameters are kept."""
        return torch.bfloat16 if self.precision == "bf16-pure" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which the policy computes."""
        if self.compute_dtype == self.parameter_dtype:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Scales losses so that fp16 gradients do not vanish; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def peak_memory_mb(self) -> float:
        """The most memory in use so far, in MB: the GPU's allocations, or this process's resident set."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return peak_resident_bytes() / 1e6

    def describe(self) -> str:
        """For people: "cpu, 2 threads, fp32", "NVIDIA H200, bf16"."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{self.device.type}{threads}, {self.precision}"


def peak_resident_bytes() -> int:
    """The largest resident set of this process so far.

    On Linux the kernel is asked for its own figure: that of getrusage begins with what the process held that
    started this one, such as a notebook's.
    """
    told = _STATUS.read_text() if _STATUS.is_file() else ""
    if match := re.search(r"^VmHWM:\s+(\d+) kB$", told, re.MULTILINE):
        return int(match[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def deterministic_seed(seed: int) -> Generator[None]:
    """Draws within are seeded; the generators outside are left as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _choose_device(name: str, local_rank: int) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    kind = name.split(":")[0]
    if not available.get(kind, False):
        present = ", ".join(kind for kind, is_present in available.items() if is_present)
        raise ConfigError(
            problem(
                "training.device",
                f"{name} is not available here",
                f"this machine has: {present}; or write auto",
            )
        )
    num_gpus = torch.cuda.device_count()
    if name.startswith("cuda:") and int(name.removeprefix("cuda:")) >= num_gpus:
        fact = f"{name} is not available here"
        raise ConfigError(
            problem("training.device", fact, f"this machine's GPUs are cuda:0 to cuda:{num_gpus - 1}")
        )
    return torch.device(name)


def _choose_precision(device: torch.device, name: Precision | Literal["auto"]) -> Precision:
    if name == "auto":
        if device.type != "cuda":
            return "bf16" if device.type == "cpu" and bf16_pays_on_cpu() else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps" and name != "fp32":
        raise ConfigError(
            problem("training.precision", f"{name} is not supported on mps", "write fp32 or auto")
        )
    return name
