"""The device and precision that are asked for are had or refused, and draws within a seed stay within it."""

import os
import re
import subprocess
import sys

import pytest
import torch
from tests.small_run import SOURCES

from finetooth.base import devices as devices_module
from finetooth.base.devices import DeviceManager, deterministic_seed
from finetooth.base.errors import ConfigError


@pytest.fixture
def machine_with(monkeypatch: pytest.MonkeyPatch):
    """Pretends that other devices are there."""

    def pretend(*, cuda: bool = False, mps: bool = False, bf16: bool = False, num_gpus: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)

    return pretend


@pytest.mark.parametrize(
    ("present", "device", "precision"),
    [
        ({}, "cpu", "fp32"),
        ({"mps": True}, "mps", "fp32"),
        ({"cuda": True, "mps": True, "bf16": True}, "cuda", "bf16"),
        ({"cuda": True}, "cuda", "fp16"),
    ],
)
def test_auto_takes_the_best_that_is_there(
    machine_with, present: dict[str, bool], device: str, precision: str
):
    machine_with(**present)
    devices = DeviceManager()
    assert (devices.device.type, devices.precision) == (device, precision)


def test_a_cpu_that_is_much_faster_in_bf16_computes_in_it(machine_with, monkeypatch: pytest.MonkeyPatch):
    machine_with()
    monkeypatch.setattr(devices_module, "bf16_pays_on_cpu", lambda: True)
    assert DeviceManager().precision == "bf16"
    assert DeviceManager("cpu", "fp32").precision == "fp32"
    machine_with(mps=True)
    assert DeviceManager().precision == "fp32"


def test_a_device_that_is_not_there_is_refused(machine_with):
    machine_with(mps=True)
    with pytest.raises(ConfigError) as caught:
        DeviceManager("cuda:1")
    assert str(caught.value) == (
        "training.device: cuda:1 is not available here; this machine has: mps, cpu; or write auto"
    )


def test_one_gpu_of_several_may_be_named(machine_with):
    machine_with(cuda=True, num_gpus=2)
    assert DeviceManager("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(ConfigError) as caught:
        DeviceManager("cuda:2")
    assert str(caught.value) == (
        "training.device: cuda:2 is not available here; this machine's GPUs are cuda:0 to cuda:1"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16", "bf16-pure"])
def test_mps_has_fp32_only(machine_with, precision: str):
    machine_with(mps=True)
    with pytest.raises(ConfigError) as caught:
        DeviceManager("mps", precision)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"training.precision: {precision} is not supported on mps; write fp32 or auto"
    )


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_have_the_precision_that_was_asked_for(precision: str, dtype: torch.dtype):
    devices = DeviceManager("cpu", precision)  # type: ignore[arg-type]
    with devices.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert devices.compute_dtype is product.dtype is dtype
    assert devices.parameter_dtype is torch.float32
    assert devices.gradient_scaler().is_enabled() == (precision == "fp16")


def test_pure_bf16_keeps_parameters_in_the_type_it_computes_in():
    devices = DeviceManager("cpu", "bf16-pure")
    with devices.autocast():
        single = torch.ones(2, 2) @ torch.ones(2, 2)
    assert devices.compute_dtype is devices.parameter_dtype is torch.bfloat16
    assert single.dtype is torch.float32, "what is not bf16 already is not cast"
    assert not devices.gradient_scaler().is_enabled()
    assert re.fullmatch(r"cpu, \d+ threads, bf16-pure", devices.describe())


def test_peak_memory_counts_what_this_process_had():
    devices = DeviceManager("cpu")
    torch.ones(1)
    before = devices.peak_memory_mb()
    held = torch.ones(100_000_000)  # 400 MB, touched
    grown = devices.peak_memory_mb()
    del held
    assert before > 10
    assert grown >= 400
    assert devices.peak_memory_mb() > grown - 2  # Linux counts pages in batches; what is let go is 400 MB


def test_a_device_is_described_for_people():
    assert re.fullmatch(r"cpu, \d+ threads, bf16", DeviceManager("cpu", "bf16").describe())


def test_draws_within_a_seed_repeat_and_leave_the_others_alone():
    torch.manual_seed(3)
    undisturbed = torch.rand(4)
    torch.manual_seed(3)
    drawn: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        with deterministic_seed(seed):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.rand(4), undisturbed)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has /proc/self/status")
def test_what_the_starting_process_held_is_none_of_the_peak():
    ballast = b"x" * 700_000_000  # more than torch takes
    code = "from finetooth.base.devices import peak_resident_bytes; print(peak_resident_bytes())"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert 50_000_000 < int(done.stdout) < len(ballast)
