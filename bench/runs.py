"""What an arm did, whether it was the same work as finetooth's, and the figures that follow from it."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetooth.model.flops import flops_per_token
from work import Work

FINETOOTH = "finetooth"
COMPILED = "finetooth, compiled"
# Steps whose losses are compared, and how far apart these may be where both arms compute in fp32, or not.
_STEPS_COMPARED, _FP32_TOLERANCE, _BF16_TOLERANCE = 5, 1e-3, 3e-2
# First losses of arms that begin with other documents; a fresh model's hardly depends on them.
_OTHER_DOCUMENTS_TOLERANCE = 5e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one arm did, once. Times are seconds since 1970; lists of steps have one entry for each.

    digest:        of all documents that it prepared, token ids and targets
    lengths:       tokens of each of them
    num_positions: what was computed, padding included
    precision:     of matrix products
    """

    started: float
    ended: float
    step_ends: list[float]
    losses: list[float]
    num_tokens: list[int]
    num_targets: list[int]
    num_positions: list[int]
    digest: str
    lengths: list[int]
    precision: str
    peak_memory_mb: float
    gpu_busy: tuple[tuple[float, float], ...] = ()
    recompiled: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to do the work.

    run:         does it in a folder, within a number of seconds; raises ArmError where it cannot
    keeps_order: whether its steps are those of finetooth, document for document
    is_tuned:    whether it is one of several variants, of which the best counts
    """

    name: str
    run: Callable[[Work, Path, float], Run]
    keeps_order: bool = True
    is_tuned: bool = False


def differences(arm: Arm, run: Run, expected: Run) -> list[str]:
    """How an arm's work differs from finetooth's; nothing where both did the same."""
    found: list[str] = []
    if run.digest != expected.digest:
        kinds = f"{len(run.lengths)} documents of {sum(run.lengths)} tokens"
        found.append(
            f"other documents or targets ({kinds}, not {len(expected.lengths)} of {sum(expected.lengths)})"
        )
    if len(run.losses) != len(expected.losses):
        found.append(f"{len(run.losses)} steps, not {len(expected.losses)}")
    if arm.keeps_order and (run.num_tokens, run.num_targets) != (expected.num_tokens, expected.num_targets):
        found.append("steps of other documents")
    compared = _STEPS_COMPARED if arm.keeps_order else 1
    allowed = _FP32_TOLERANCE if run.precision == expected.precision == "fp32" else _BF16_TOLERANCE
    allowed = allowed if arm.keeps_order else _OTHER_DOCUMENTS_TOLERANCE
    pairs = enumerate(zip(run.losses[:compared], expected.losses[:compared], strict=False), start=1)
    for step, (loss, expected_loss) in pairs:
        if not math.isclose(loss, expected_loss, rel_tol=allowed):
            found.append(f"loss {loss:.4f} at step {step}, not {expected_loss:.4f}")
            break
    return found


def figures(
    run: Run, work: Work, peak_flops: Mapping[str, float], *, warm_up: int
) -> dict[str, float | None]:
    """What is reported of a run. Rates are those of the steps behind the first `warm_up` ones.

    share_of_peak is that of the measured matrix products in the number format of the run's own.
    """
    first, last = run.step_ends[warm_up - 1], run.step_ends[-1]
    seconds = last - first
    useful = sum(run.num_tokens[warm_up:]) / seconds
    share_of_targets = sum(run.num_targets) / sum(run.num_tokens)
    flops = useful * flops_per_token(work.shape, run.lengths, share_of_targets, lora=work.lora)
    peak = peak_flops["fp32" if run.precision == "fp32" else "bf16"]
    busy = [share for moment, share in run.gpu_busy if first < moment <= last]
    return {
        "target_tokens_per_second": sum(run.num_targets[warm_up:]) / seconds,
        "useful_tokens_per_second": useful,
        "seconds_to_first_step": run.step_ends[0] - run.started,
        "seconds_per_step": seconds / (len(run.step_ends) - warm_up),
        "seconds_from_last_step": run.ended - last,
        "seconds": run.ended - run.started,
        "peak_memory_mb": run.peak_memory_mb,
        "padding": 1 - sum(run.num_tokens) / sum(run.num_positions),
        "share_of_targets": share_of_targets,
        "flops": flops,
        "share_of_peak": flops / peak,
        "gpu_busy": statistics.fmean(busy) if busy else None,
        "recompiles": sum(moment > first for moment in run.recompiled),
    }


def summaries(all_figures: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure over the repeats; figures that could not be read are left out."""
    result: dict[str, dict[str, float]] = {}
    for name in all_figures[0]:
        values = [value for each in all_figures if (value := each[name]) is not None]
        if values:
            result[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return result
