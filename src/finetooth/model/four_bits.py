"""A frozen base in 4 bits (NF4 with double quantisation: Dettmers et al. 2023), through bitsandbytes."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import BitsAndBytesConfig, PreTrainedModel

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem


def loading_options(devices: DeviceManager) -> dict[str, Any]:
    """What `from_pretrained` must be given so that linear layers, the head left out, are read into 4 bits.

    They compute in the devices' precision. Raises ConfigError where bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        fact, remedy = "qlora needs bitsandbytes", "pip install 'finetooth[qlora]'"
        raise ConfigError(problem("adapter.type", fact, remedy))
    with _without_hub_kernels():
        importlib.import_module("bitsandbytes")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=devices.compute_dtype,
    )
    return {"quantization_config": settings, "device_map": {"": devices.device}}


def keep_packing(model: PreTrainedModel) -> None:
    """Keeps the 4-bit layers from packing their parameters anew when they evaluate on a CPU.

    bitsandbytes never unpacks them again, and gradients after an evaluation would be wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


@contextmanager
def _without_hub_kernels() -> Iterator[None]:
    """Within it, bitsandbytes does not find the package that would fetch compiled code from the hub."""
    if "bitsandbytes" in sys.modules or "kernels" in sys.modules:
        yield
        return
    sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType] - an import of it then fails
    try:
        yield
    finally:
        del sys.modules["kernels"]
