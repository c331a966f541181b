"""Runs all arms in turns on the same work, and makes sure that it was the same."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import ArmError
from runs import FINETOOTH, Arm, Run, differences, figures, summaries
from work import Work

HEADLINE = "target_tokens_per_second"
# A tuned variant this much slower than the best of them is not run again.
_CLEARLY_SLOWER = 0.8
_COMPARED = (HEADLINE, "useful_tokens_per_second", "seconds", "seconds_to_first_step", "peak_memory_mb")


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Arms that do the same work, finetooth first, and what each has done so far.

    folder:     where an arm works; removed behind it
    peak_flops: of matrix products, by number format
    warm_up:    steps that are not counted in rates
    limit:      seconds that one run may take
    tell:       is called with a line about each run
    left_out:   arms that cannot run here, and why
    """

    arms: Sequence[Arm]
    work: Work
    folder: Path
    peak_flops: Mapping[str, float]
    warm_up: int
    limit: float
    tell: Callable[[str], None]
    runs: dict[str, list[Run]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def take_turns(self, *, repeats: int) -> None:
        """Runs each arm once per repeat; tuned variants that are clearly slow only once.

        SystemExit where finetooth fails, or an arm does other work. Other arms that fail are left out.
        """
        for repeat in range(1, repeats + 1):
            slow = self._slow_variants()
            for arm in self.arms:
                if arm.name not in self.left_out and arm.name not in slow:
                    self._run(arm, f"{repeat}/{repeats}")

    def result(self) -> dict[str, Any]:
        """Figures of every arm, ratios of finetooth's to them, loss curves, and what was left out."""
        summary = {name: summaries(self._figures(name)) for name in self.runs}
        own = summary[FINETOOTH]
        return {
            "model": {**self.work.config, "lora": self.work.lora},
            "num_documents": len(self.runs[FINETOOTH][0].lengths),
            "digest": self.runs[FINETOOTH][0].digest,
            "precision": {name: runs[0].precision for name, runs in self.runs.items()},
            "figures": summary,
            "best_tuned": self._best_variant(),
            "ratios": {name: _ratios(own, each) for name, each in summary.items() if name != FINETOOTH},
            "losses": {name: runs[0].losses for name, runs in self.runs.items()},
            "loss_differences": self._loss_differences(),
            "repeats": {name: self._figures(name) for name in self.runs},
            "left_out": self.left_out,
        }

    def _run(self, arm: Arm, turn: str) -> None:
        try:
            run = arm.run(self.work, self.folder, self.limit)
        except ArmError as error:
            if arm.name == FINETOOTH:
                raise SystemExit(f"{arm.name}: {error}") from None
            self.runs.pop(arm.name, None)
            self.left_out[arm.name] = str(error)
            self.tell(f"{turn} {arm.name}: left out: {error}")
            return
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.runs.setdefault(arm.name, []).append(run)
        if found := differences(arm, run, self.runs[FINETOOTH][0]):
            raise SystemExit(f"{arm.name}: {'; '.join(found)}: this is not the same work as {FINETOOTH}'s")
        rate, seconds = self._figures(arm.name)[-1][HEADLINE], run.ended - run.started
        self.tell(f"{turn} {arm.name}: {rate:,.0f} target tokens/s, {seconds:.1f} s in all")

    def _figures(self, name: str) -> list[dict[str, float | None]]:
        return [figures(run, self.work, self.peak_flops, warm_up=self.warm_up) for run in self.runs[name]]

    def _loss_differences(self) -> dict[str, float]:
        """By how much the losses of arms that do finetooth's own steps differ from its at most."""
        own = self.runs[FINETOOTH][0].losses
        losses = {arm.name: self.runs[arm.name][0].losses for arm in self.arms if arm.name in self.runs}
        same = {arm.name for arm in self.arms if arm.keeps_order and arm.name != FINETOOTH}
        return {
            name: max(abs(loss - expected) for loss, expected in zip(each, own, strict=True))
            for name, each in losses.items()
            if name in same
        }

    def _variant_rates(self) -> dict[str, float]:
        names = [arm.name for arm in self.arms if arm.is_tuned and arm.name in self.runs]
        return {name: summaries(self._figures(name))[HEADLINE]["median"] for name in names}

    def _best_variant(self) -> str | None:
        rates = self._variant_rates()
        return max(rates, key=rates.__getitem__, default=None)

    def _slow_variants(self) -> set[str]:
        rates = self._variant_rates()
        return {name for name, rate in rates.items() if rate < _CLEARLY_SLOWER * max(rates.values())}


def _ratios(
    own: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """finetooth's medians divided by another arm's: above 1 is better for rates, below 1 for costs."""
    return {name: own[name]["median"] / other[name]["median"] for name in _COMPARED}
