"""A frozen base in 4 bits (NF4 with double quantisation: Dettmers et al. 2023), through bitsandbytes."""

import importlib
import importlib.util
import sys
from typing import Any

from transformers import BitsAndBytesConfig, PreTrainedModel

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem


def loading_options(devices: DeviceManager) -> dict[str, Any]:
    """What `from_pretrained` must be given so that linear layers, the head left out, are read into 4 bits.

    They compute in the devices' precision. Raises ConfigError where bitsandbytes is not installed.
    """
    if not import_bitsandbytes():
        fact, remedy = "qlora needs bitsandbytes", "pip install 'finetooth[qlora]'"
        raise ConfigError(problem("adapter.type", fact, remedy))
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=devices.compute_dtype,
    )
    return {"quantization_config": settings, "device_map": {"": devices.device}}


def import_bitsandbytes() -> bool:
    """Imports bitsandbytes where it is installed, and tells whether it is.

    Wherever it is needed, it is imported here first, peft's own import included: on some CPUs it would fetch
    compiled code from the hub if it found the package `kernels`.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType] - an import of it then fails
    try:
        importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
    return True


def keep_packing(model: PreTrainedModel) -> None:
    """Keeps the 4-bit layers from packing their parameters anew when they evaluate on a CPU.

    bitsandbytes never unpacks them again, and gradients after an evaluation would be wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
