"""What this machine has, told without loading torch: memory, processor, NVIDIA GPUs."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

_MEMORY_FILE = Path("/proc/meminfo")
_PROCESSOR_FILE = Path("/proc/cpuinfo")
# Of a processor's instructions, those that decide how fast matrix products are, and in which number format.
_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16"),
    *("asimd", "fphp", "bf16", "sve", "sme"),
)
# What a container may use at most; the two names are those of the kernel's two versions of groups.
_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_ASK_FOR_GPUS = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU; memory and free in bytes."""

    name: str
    memory: int
    free: int


@dataclass(frozen=True, slots=True)
class Machine:
    """memory, free: the host's, in bytes, no more than a container may use; gpus: those of NVIDIA."""

    memory: int
    free: int
    gpus: tuple[Gpu, ...] = ()

    def describe(self) -> str:
        """For people: "2 × NVIDIA H100 with 85.5 GB", "16.4 GB of memory, no GPU"."""
        for gpu in self.gpus:
            count = f"{len(self.gpus)} × " if len(self.gpus) > 1 else ""
            return f"{count}{gpu.name} with {gigabytes(gpu.memory)}"
        return f"{gigabytes(self.memory)} of memory, no GPU"


def this_machine() -> Machine:
    """What is here now. GPUs are those that `nvidia-smi` and CUDA_VISIBLE_DEVICES show."""
    memory, free = host_memory()
    return Machine(memory, free, _gpus())


def host_memory() -> tuple[int, int]:
    """The host's memory and what of it is free, in bytes; where the system does not tell, all is free."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = memory
    if _MEMORY_FILE.is_file():
        fields = (line.split() for line in _MEMORY_FILE.read_text().splitlines())
        free = next((int(field[1]) * 1024 for field in fields if field[0] == "MemAvailable:"), memory)
    limits = [int(text) for file in _LIMIT_FILES if (text := _text_of(file)).isdecimal()]
    memory = min(memory, *limits) if limits else memory
    return memory, min(memory, free)


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor: its name, those of its instruction sets that matter, cores, and cores for this process."""

    name: str
    instructions: tuple[str, ...]
    cores: int
    usable_cores: int


def this_processor() -> Processor:
    """The processor here. Where the system does not list instruction sets, there are none."""
    fields: dict[str, str] = {}
    if _PROCESSOR_FILE.is_file():
        for line in _PROCESSOR_FILE.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = {*fields.get("flags", "").split(), *fields.get("Features", "").split()}
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    name = fields.get("model name") or platform.processor() or platform.machine()
    return Processor(name, tuple(known for known in _INSTRUCTIONS if known in flags), cores, usable)


def gigabytes(num_bytes: float) -> str:
    """Bytes for people.

    >>> gigabytes(85.5e9), gigabytes(2.5e6)
    ('85.5 GB', '2.5 MB')
    """
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.1f} GB"
    return f"{num_bytes / 1e6:,.1f} MB"


def _gpus() -> tuple[Gpu, ...]:
    try:
        told = subprocess.run(_ASK_FOR_GPUS, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ()  # no driver, or one that does not answer: torch would find no GPU either
    found = [_gpu_of(line) for line in told.splitlines() if line.count(",") == 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [number for number in visible.split(",") if number] if visible is not None else None
    if numbers is None or not all(number.strip().isdecimal() for number in numbers):
        return tuple(found)
    return tuple(found[int(number)] for number in numbers if int(number) < len(found))


def _gpu_of(line: str) -> Gpu:
    """A line such as "NVIDIA H100, 81559, 80994", in MiB."""
    name, memory, free = (field.strip() for field in line.split(","))
    return Gpu(name, int(memory) << 20, int(free) << 20)


def _text_of(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""  # another version of groups, or none
