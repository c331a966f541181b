"""The benchmark of whole runs: its arms do the same work, and others are found out."""

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
LIMIT = 120


@pytest.fixture(scope="module")
def bench() -> Any:
    """Imports a module of bench/ by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module


@pytest.fixture(scope="module")
def work(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five steps of four made-up conversations for a model of a few thousand parameters."""
    made = bench("work")
    return made.make_work(
        tmp_path_factory.mktemp("bench") / "work",
        "tiny",
        made.made_records(26, median=30, longest=60),
        num_steps=5,
        documents_per_step=4,
        max_length=256,
        limit=LIMIT,
    )


@pytest.fixture(scope="module")
def own(bench: Any, work: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What finetooth did."""
    return bench("finetooth_arm").run_finetooth(work, tmp_path_factory.mktemp("own") / "arm", LIMIT)


def arm_named(bench: Any, name: str, *, bf16_pays: bool = False) -> Any:
    """An arm of TRL on a processor."""
    arms = bench("trl_arms").trl_arms(bf16_pays=bf16_pays, on_gpu=False)
    return next(arm for arm in arms if arm.name == name)


@pytest.fixture(scope="module")
def as_it_comes(bench: Any, work: Any, own: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return arm_named(bench, "TRL as it comes").run(work, tmp_path_factory.mktemp("trl") / "arm", LIMIT)


def test_finetooth_is_measured_from_command_to_saved_model(work: Any, own: Any):
    assert len(own.lengths) == 24, "of 26 records those that fill whole steps"
    assert own.started < own.step_ends[0] < own.step_ends[4] < own.ended
    assert own.step_ends == sorted(own.step_ends)
    assert own.num_positions == own.num_tokens, "on a CPU no position is padding"
    assert own.precision == "fp32"
    assert own.peak_memory_mb > 100
    assert work.mean_length == pytest.approx(sum(own.lengths) / 24, rel=0.2)


def test_trl_trains_the_same_documents_with_the_same_losses(bench: Any, own: Any, as_it_comes: Any):
    assert bench("runs").differences(arm_named(bench, "TRL as it comes"), as_it_comes, own) == []
    assert as_it_comes.digest == own.digest
    assert as_it_comes.num_targets == own.num_targets
    assert as_it_comes.losses == pytest.approx(own.losses, rel=1e-4)
    assert as_it_comes.losses[0] - as_it_comes.losses[4] > 0.01, "it learns"
    assert sum(as_it_comes.num_positions) > 1.1 * sum(as_it_comes.num_tokens)
    assert as_it_comes.started < as_it_comes.step_ends[0] < as_it_comes.step_ends[4] < as_it_comes.ended


def test_truncation_is_found(bench: Any, work: Any, own: Any, tmp_path: Path):
    """Negative control: TRL cuts documents above `max_length` without a word."""
    most = max(own.lengths) - 1
    arm = arm_named(bench, "TRL packed bf16", bf16_pays=True)
    run = arm.run(replace(work, max_length=most), tmp_path / "arm", LIMIT)
    cut = [min(length, most) for length in own.lengths]
    assert sorted(run.lengths) == sorted(cut), "packed documents are told apart"
    assert run.num_positions == run.num_tokens
    assert run.precision == "bf16"
    assert bench("runs").differences(arm, run, own) == [
        f"other documents or targets (24 documents of {sum(cut)} tokens, not 24 of {sum(own.lengths)})"
    ]


def test_shifted_targets_are_found(bench: Any, own: Any, as_it_comes: Any):
    """Negative control: the same token ids, and every target one place further on."""
    read = bench("trl_script")._documents
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]}
    shifted = {**row, "labels": [-100, -100, 7, -100, 9]}
    packed = {**row, "seq_lengths": [2, 3]}
    digest_of = bench("work").digest_of
    assert list(read([packed])) == [([5, 6], [False, True]), ([7, 8, 9], [False, True, True])]
    assert digest_of(read([row])) != digest_of(read([shifted]))
    assert digest_of(read([row])) != digest_of(read([packed]))
    run = replace(as_it_comes, digest=digest_of(read([shifted])))
    (found,) = bench("runs").differences(arm_named(bench, "TRL as it comes"), run, own)
    assert found.startswith("other documents or targets (24 documents of ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: {"losses": run.losses[:4]}, "4 steps, not 5"),
        (lambda run: {"num_targets": run.num_targets[::-1]}, "steps of other documents"),
        (lambda run: {"losses": [run.losses[0], 7.0, *run.losses[2:]]}, "loss 7.0000 at step 2, not "),
    ],
)
def test_other_steps_are_found(
    bench: Any, own: Any, as_it_comes: Any, change: Callable[[Any], dict[str, Any]], told: str
):
    """Negative controls."""
    changed = replace(as_it_comes, **change(as_it_comes))
    found = bench("runs").differences(arm_named(bench, "TRL as it comes"), changed, own)
    assert len(found) == 1
    assert found[0].startswith(told)


def comparison_of(bench: Any, work: Any, folder: Path, arms: list[Any]) -> tuple[Any, list[str]]:
    told: list[str] = []
    peaks = {"fp32": 1e12, "bf16": 2e12}
    comparison = bench("comparison").Comparison(
        arms=arms,
        work=work,
        folder=folder / "arm",
        peak_flops=peaks,
        warm_up=1,
        limit=LIMIT,
        tell=told.append,
    )
    return comparison, told


def slower(run: Any, factor: float) -> Any:
    """The same run, whose steps took so many times as long."""
    ends = [run.step_ends[0] + factor * (end - run.step_ends[0]) for end in run.step_ends]
    return replace(run, step_ends=ends, ended=ends[-1] + 1)


def failing(bench: Any, reason: str) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
        raise bench("processes").ArmError(reason)

    return run


def test_arms_take_turns_and_the_best_variant_counts(bench: Any, work: Any, own: Any, tmp_path: Path):
    arm = bench("runs").Arm
    other = slower(replace(own, losses=[*own.losses[:4], own.losses[4] + 0.001]), 3)
    arms = [
        arm("finetooth", lambda *_: own),
        arm("TRL as it comes", lambda *_: slower(own, 4)),
        arm("TRL packed", lambda *_: slower(own, 2), is_tuned=True, keeps_order=False),
        arm("TRL grouped", lambda *_: other, is_tuned=True),
        arm("TRL kernels", failing(bench, "no GPU"), is_tuned=True),
    ]
    comparison, told = comparison_of(bench, work, tmp_path, arms)
    comparison.take_turns(repeats=3)
    result = comparison.result()
    turns = [line.partition(": ")[0] for line in told]
    assert turns[:5] == ["1/3 finetooth", *(f"1/3 {each.name}" for each in arms[1:])]
    assert turns[5:8] == ["2/3 finetooth", "2/3 TRL as it comes", "2/3 TRL packed"]
    assert told[4] == "1/3 TRL kernels: left out: no GPU"
    assert result["best_tuned"] == "TRL packed"
    assert result["left_out"] == {"TRL kernels": "no GPU"}
    assert result["ratios"]["TRL as it comes"]["target_tokens_per_second"] == pytest.approx(4)
    assert [len(each) for each in result["repeats"].values()] == [3, 3, 3, 1]
    assert result["losses"]["TRL grouped"] == other.losses
    assert result["loss_differences"] == {"TRL as it comes": 0, "TRL grouped": pytest.approx(0.001)}


def test_the_command_prints_and_writes_what_it_found(
    bench: Any, work: Any, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """With runs that are there already; the model is removed only when all figures are made."""
    whole_runs = bench("whole_runs")
    peaks = {"device": "cpu", "device_type": "cpu", "threads": 1, "bf16_pays": True}
    peaks |= {"peak_flops": {"fp32": 1e12, "bf16": 2e12}, "head": {"shape": [1, 2, 3], "seconds": 1.0}}

    def copied(folder: Path, *_: Any, **__: Any) -> Any:
        return replace(work, base=shutil.copytree(work.base, folder / "base"))

    monkeypatch.setattr(whole_runs, "_measure_peaks", lambda *_, **__: peaks)
    monkeypatch.setattr(whole_runs, "make_work", copied)
    monkeypatch.setattr(whole_runs, "run_finetooth", lambda *_, **__: own)
    whole_runs.main(["--sizes", "tiny", "--arms", "finetooth, compiled", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "tiny: tokens per second" in printed
    assert "finetooth, compiled: losses within 0 of finetooth's, all 5 steps" in printed
    found = json.loads((tmp_path / "out" / "results.json").read_text())["sizes"]["tiny"]
    assert found["ratios"]["finetooth, compiled"]["seconds"] == 1
    assert (tmp_path / "out" / "loss-tiny.svg").is_file()


def test_other_work_ends_the_comparison(bench: Any, work: Any, own: Any, tmp_path: Path):
    arm = bench("runs").Arm
    other = replace(own, digest="0")
    arms = [arm("finetooth", lambda *_: own), arm("TRL", lambda *_: other)]
    with pytest.raises(SystemExit) as caught:
        comparison_of(bench, work, tmp_path, arms)[0].take_turns(repeats=1)
    kinds = f"24 documents of {sum(own.lengths)} tokens, not 24 of {sum(own.lengths)}"
    assert str(caught.value) == (
        f"TRL: other documents or targets ({kinds}): this is not the same work as finetooth's"
    )
    with pytest.raises(SystemExit) as caught:
        comparison_of(bench, work, tmp_path, [arm("finetooth", failing(bench, "broken"))])[0].take_turns(
            repeats=1
        )
    assert str(caught.value) == "finetooth: broken"


def test_figures_follow_from_times_and_counts(bench: Any, work: Any, own: Any):
    runs = bench("runs")
    run = replace(
        own,
        started=100.0,
        step_ends=[110.0, 112.0, 114.0, 116.0, 120.0],
        ended=123.0,
        num_tokens=[50, 100, 100, 100, 100],
        num_targets=[25, 50, 50, 50, 50],
        num_positions=[100, 200, 200, 200, 200],
        peak_memory_mb=7.0,
        gpu_busy=((111.0, 1.0), (115.0, 0.5), (121.0, 0.0)),
        recompiled=(105.0, 119.0),
    )
    found = runs.figures(run, work, {"fp32": 1e9, "bf16": 2e9}, warm_up=1)
    flops = 40 * runs.flops_per_token(work.shape, run.lengths, 0.5, lora=False)
    assert found == {
        "target_tokens_per_second": 20.0,
        "useful_tokens_per_second": 40.0,
        "seconds_to_first_step": 10.0,
        "seconds_per_step": 2.5,
        "seconds_from_last_step": 3.0,
        "seconds": 23.0,
        "peak_memory_mb": 7.0,
        "padding": 0.5,
        "share_of_targets": 0.5,
        "flops": flops,
        "share_of_peak": flops / 1e9,
        "gpu_busy": 0.75,
        "recompiles": 1,
    }
    assert (
        runs.figures(replace(run, precision="bf16"), work, {"bf16": flops}, warm_up=1)["share_of_peak"] == 1
    )
    tiny = replace(work.shape, vocabulary=0)
    # two layers of 32 features: 2 · 32 · (2 · 32 + 2 · 16 + 3 · 64) parameters; attention 6 · 2 · 32 · 8
    assert runs.flops_per_token(tiny, [8, 8], 0.5, lora=False) == 6 * 18432 + 3072
    assert runs.flops_per_token(tiny, [8, 8], 0.5, lora=True) == 4 * 18432 + 3072


def test_all_is_printed_and_written(
    bench: Any, work: Any, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    whole_runs, arm = bench("whole_runs"), bench("runs").Arm
    peaks = {"fp32": 1e12, "bf16": 1e9}
    machine = {
        "device": "cpu",
        "device_type": "cpu",
        "threads": 2,
        "bf16_pays": False,
        "peak_flops": peaks,
        "head": {"shape": [64, 16, 128], "seconds": 0.002},
    }
    busy = replace(slower(own, 2), gpu_busy=((own.step_ends[0] + 1e-4, 0.5),))
    trl = [
        arm("TRL as it comes", lambda *_: slower(own, 4)),
        arm("TRL packed fp32", lambda *_: busy, is_tuned=True),
        arm("TRL kernels", failing(bench, "no GPU"), is_tuned=True),
    ]
    monkeypatch.setattr(whole_runs, "_measure_peaks", lambda folder, limit: machine)
    monkeypatch.setattr(whole_runs, "run_finetooth", lambda *_: own)
    monkeypatch.setattr(whole_runs, "trl_arms", lambda **_: trl)
    monkeypatch.setattr(whole_runs, "make_work", lambda folder, *_, **__: folder.mkdir() or work)
    whole_runs.main(["--sizes", "tiny", "--repeats", "2", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for text in ("fp32 1,000", "64 x 16 x 128, both ways: 2.0 ms", "TRL packed fp32 *", "4.00"):
        assert text in printed
    assert "TRL packed fp32: GPU busy 50%" in printed
    assert "left out: TRL kernels: no GPU" in printed
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["sizes"]["tiny"]["ratios"]["TRL packed fp32"]["target_tokens_per_second"] == pytest.approx(
        2
    )
    picture = (tmp_path / "out" / "loss-tiny.svg").read_text()
    names = [each.text for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {"finetooth", "TRL as it comes", "TRL packed fp32"} <= set(names)
    assert picture.count("http") == 1, "its namespace; nothing is fetched from elsewhere"


def test_records_and_steps_must_suffice(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole_runs = bench("whole_runs")
    path = tmp_path / "train.jsonl"
    path.write_text(
        json.dumps({"question": "1+1?", "answer": "2"}) + "\n" + json.dumps({"messages": []}) + "\n"
    )
    asked = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
    assert bench("work").read_records(path) == [{"messages": list(asked)}, {"messages": []}]
    options = whole_runs._parse(["--records", str(path), "--num-steps", "2", "--documents-per-step", "3"])
    with pytest.raises(SystemExit) as caught:
        whole_runs._records(options)
    assert str(caught.value) == f"{path}: 2 records; 6 are needed for so many steps"
    machine = {"device_type": "cuda", "device": "", "threads": 1, "bf16_pays": True, "peak_flops": {}}
    machine |= {"head": {"shape": [], "seconds": 0}}
    monkeypatch.setattr(whole_runs, "_measure_peaks", lambda folder, limit: machine)
    with pytest.raises(SystemExit) as caught:
        whole_runs.main(["--num-steps", "5"])
    assert str(caught.value) == "--num-steps: 5, of which the first 5 only warm up; write 6 or more"


def test_variants_of_trl_fit_the_machine(bench: Any, work: Any, monkeypatch: pytest.MonkeyPatch):
    trl = bench("trl_arms")

    def names(**machine: bool) -> list[str]:
        return [arm.name.removeprefix("TRL ") for arm in trl.trl_arms(**machine)]

    bf16, fp32 = (
        [f"{layout} {dtype}" for layout in ("packed", "padding-free", "grouped")]
        for dtype in ("bf16", "fp32")
    )
    assert names(bf16_pays=False, on_gpu=False) == ["as it comes", *fp32]
    assert names(bf16_pays=True, on_gpu=False) == ["as it comes", *bf16, *fp32]
    installed = ("flash_attn", "liger_kernel")
    monkeypatch.setattr(trl.importlib.util, "find_spec", lambda name: name if name in installed else None)
    kernels = ["flash attention 2", "Liger", "compiled"]
    assert names(bf16_pays=True, on_gpu=True) == ["as it comes", *bf16, *kernels]
    longer = replace(work, mean_length=200.0, documents_per_step=16, max_length=1024)
    assert trl._rows_per_step(longer) == 3
