"""What the benchmark measures besides arms: processes, the machine's peaks, and how costs grow."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of bench/ by its name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_time_and_memory_of_a_process_are_its_own(bench: Any, tmp_path: Path):
    before = time.time()
    code = "import time; held = b'x' * 300_000_000; time.sleep(0.2)"
    ended = bench("processes").run_process(python(code), tmp_path / "run", limit=60)
    assert before <= ended.started <= ended.ended - 0.2 <= time.time()
    assert ended.peak_memory_mb > 300
    assert ended.recompiled == ()


def test_memory_of_the_benchmark_itself_is_not_counted(bench: Any, tmp_path: Path):
    held = b"x" * 300_000_000
    ended = bench("processes").run_process(python("import time; time.sleep(0.2)"), tmp_path, limit=60)
    assert len(held) > 0
    assert 1 < ended.peak_memory_mb < 100


def test_a_process_that_fails_tells_its_last_line(bench: Any, tmp_path: Path):
    processes = bench("processes")
    with pytest.raises(processes.ArmError) as caught:
        processes.run_process(python("print(1); raise ValueError('no such kernel')"), tmp_path, limit=60)
    assert str(caught.value) == "ValueError: no such kernel"
    with pytest.raises(processes.ArmError) as caught:
        processes.run_process(python("raise SystemExit(3)"), tmp_path, limit=60)
    assert str(caught.value) == "exit code 3"


def test_a_process_that_takes_too_long_is_stopped(bench: Any, tmp_path: Path):
    processes = bench("processes")
    with pytest.raises(processes.ArmError) as caught:
        processes.run_process(python("import time; time.sleep(60)"), tmp_path, limit=0.3)
    assert str(caught.value) == "stopped after 0.3 s"


def test_a_process_ends_with_the_benchmark(bench: Any, tmp_path: Path):
    command = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import whole_runs, processes, pathlib; "
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command += "whole_runs._measure_peaks = lambda folder, limit: "
    command += f"processes.run_process([sys.executable, '-c', {child!r}], folder, limit=60); "
    command += f"whole_runs.main(['--work', {str(tmp_path)!r}])"
    process = subprocess.Popen(python(command))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert os.listdir(tmp_path) == ["pid"]


def test_how_busy_the_gpu_was_is_read_from_nvidia_smi(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    lines = ("2026/11/28 06:51:46.500, 97", "2026/11/28 06:51:46.700, [N/A]", "2026/11/28 06:51:46.900, 4")
    command.write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines) + "exec sleep 60\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    ended = bench("processes").run_process(python("import time; time.sleep(0.5)"), tmp_path / "run", limit=60)
    shares = [share for _, share in ended.gpu_busy]
    assert shares == [0.97, 0.04]
    moments = [moment for moment, _ in ended.gpu_busy]
    assert moments[1] - moments[0] == pytest.approx(0.4, abs=1e-3)


def test_what_was_compiled_anew_is_counted(bench: Any, tmp_path: Path):
    code = """
import torch
double = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
for size in (2, 3, 2, 4):
    double(torch.ones(size))
"""
    before = time.time()
    ended = bench("processes").run_process(python(code), tmp_path, limit=120)
    assert len(ended.recompiled) == 2
    assert before - 1 < ended.recompiled[0] <= ended.recompiled[1] < time.time() + 1


def test_peaks_are_measured_for_formats_that_pay(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    peaks = bench("peaks")
    monkeypatch.setattr(peaks, "_SECONDS_PER_SIZE", 0.01)
    monkeypatch.setattr(peaks, "_SIZES", {"cpu": (64, 128), "cuda": (64, 128)})
    monkeypatch.setattr(peaks, "bf16_pays", lambda rates: False)
    peaks.main(["--head", "64", "16", "128"])
    result = json.loads(capsys.readouterr().out)
    assert set(result["peak_flops"]) == {"fp32", "bf16"}
    assert result["peak_flops"]["fp32"] > 1e6
    assert result["head"]["shape"] == [64, 16, 128]
    assert 0 < result["head"]["seconds"] < 10


def test_scaling_varies_one_thing_after_the_other(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    scaling, runs, work_module = bench("scaling"), bench("runs"), bench("work")
    done: list[tuple[str, list[int]]] = []
    budgets: set[int] = set()

    def make_base(command: list[str], folder: Path, *, limit: float) -> None:
        (folder / "base").mkdir()
        (folder / "base" / "lengths.json").write_text('{"mean": 1}')
        (folder / "base" / "config.json").write_text(json.dumps(work_module.config_of(command[2])))

    def run_finetooth(work: Any, folder: Path, limit: float, *, global_batch_tokens: int) -> Any:
        folder.mkdir()
        budgets.add(global_batch_tokens)
        conversations = [json.loads(line)["messages"] for line in work.records.read_text().splitlines()]
        lengths = [sum(len(each["content"].split()) for each in messages) for messages in conversations]
        assert max(lengths) < work.max_length
        done.append((work.size, lengths))
        lists = {name: [8, 8, 8] for name in ("num_tokens", "num_targets", "losses")}
        times = {"started": 0.0, "ended": 9.0, "step_ends": [1.0, 2.0, 3.0]}
        facts = {"num_positions": [10, 10, 10], "digest": "", "precision": "fp32", "peak_memory_mb": 5.0}
        return runs.Run(**times, **lists, **facts, lengths=lengths)

    monkeypatch.setattr(work_module, "run_process", make_base)
    monkeypatch.setattr(scaling, "_NUM_RECORDS", 50)
    monkeypatch.setattr(scaling, "run_finetooth", run_finetooth)
    monkeypatch.chdir(tmp_path)
    machine = {
        "device": "cpu",
        "device_type": "cpu",
        "threads": 1,
        "bf16_pays": True,
        "peak_flops": {"fp32": 1e9, "bf16": 1e9},
        "head": {"shape": [1, 1, 1], "seconds": 0.1},
    }
    whole_runs = bench("whole_runs")
    monkeypatch.setattr(whole_runs, "_measure_peaks", lambda folder, limit: machine)
    whole_runs.main(["--scaling", "--sizes", "tiny", "16M", "--repeats", "2", "--out", "out"])
    rows = json.loads(Path("out/results.json").read_text())["scaling"]
    assert budgets == {4096}
    assert [row["varied"] for row in rows] == ["model", *["records"] * 2, *["words in each"] * 5, "model"]
    assert done[:9] == done[9:], "runs take turns"
    assert [size for size, _ in done[:9]] == ["tiny"] * 8 + ["16M"]
    mixed = done[0][1]
    assert [lengths for _, lengths in done[1:3]] == [4 * mixed, 16 * mixed]
    assert [set(lengths) for _, lengths in done[3:7]] == [{64}, {128}, {256}, {512}]
    (alike,) = set(done[7][1])
    assert alike == pytest.approx(sum(n * n for n in mixed) / sum(mixed), abs=1)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "80.0%" in printed
