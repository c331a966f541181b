"""How long a run takes: its steps counted and weighed by their cost, and a few measured ones summed up.

Steps differ: a step's cost is its floating-point operations, which its documents and rows decide. Steps that
are spread evenly over the costs are measured; the rest follows from them (a regression estimator: Cochran,
Sampling Techniques, 1977).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetooth.batching.packing import Layout
from finetooth.batching.row_lengths import num_places
from finetooth.batching.schedule import Schedule
from finetooth.config.figures import needs_dev
from finetooth.config.schema import SFTConfig
from finetooth.model.flops import flops_per_token
from finetooth.model.shape import ModelShape

# So many steps are weighed, spread over the run, of about so many documents in all.
_WEIGHED_STEPS = 1000
_WEIGHED_DOCUMENTS = 128_000
# Training takes so many times as long as its matrix products would at their best rate: norms, copies, the
# optimiser, and products too small for that rate.
_SLOWER_THAN_PRODUCTS = (1.3, 4.0)


@dataclass(frozen=True, slots=True)
class Part:
    """How long a part of a run takes.

    seconds:          of all of it, in the whole run
    counted:          what is counted: steps, documents, bytes
    measured, in_all: how many of them were measured, and how many there are
    times:            how often a run does it
    """

    seconds: float
    counted: str
    measured: int
    in_all: int
    times: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it was extrapolated but its repetitions."""
        return self.measured == self.in_all


@dataclass(frozen=True, slots=True)
class WeighedSteps:
    """Steps of a run, spread over it, and what each costs.

    numbers: int64 [K], rising; costs: float64 [K], floating-point operations, padding included
    """

    numbers: np.ndarray
    costs: np.ndarray

    def spread(self, most: int) -> list[int]:
        """Places of at most so many steps; the first ones, however many, are spread evenly over the costs.

        >>> WeighedSteps(np.arange(1, 9), np.array([8.0, 7, 6, 5, 4, 3, 2, 1])).spread(3)
        [3, 5, 1]
        """
        by_cost = np.argsort(self.costs, kind="stable")
        ranks = (int(_reversed_bits(number) * len(by_cost)) for number in range(1, 4 * len(by_cost)))
        return [int(by_cost[rank]) for rank in dict.fromkeys(ranks)][:most]

    def mean_seconds(self, places: Sequence[int], seconds: Sequence[float]) -> float:
        """What a step of the run takes in the mean, where those at some places took so many seconds.

        The mean of the measured ones, moved along the line through them to the mean cost of all.
        """
        costs, times = self.costs[list(places)], np.asarray(seconds)
        deviations = costs - costs.mean()
        spread = float((deviations**2).sum())
        slope = float((deviations * (times - times.mean())).sum()) / spread if spread > 0 else 0.0
        # Neither costs less than nothing: what a step takes whatever its cost, and its cost.
        slope = min(max(slope, 0.0), float(times.mean() / costs.mean()))
        return float(times.mean() + slope * (self.costs.mean() - costs.mean()))


def weigh_steps(
    schedule: Schedule, layout: Layout, shape: ModelShape, *, among: Sequence[int] = (), lora: bool = False
) -> WeighedSteps:
    """What up to a thousand steps of a run cost on one rank; among: the lengths that rows are padded to."""
    per_step = -(-schedule.num_documents // schedule.steps_per_epoch)
    most = max(1, min(_WEIGHED_STEPS, _WEIGHED_DOCUMENTS // per_step, schedule.num_steps))
    numbers = np.unique(np.linspace(1, schedule.num_steps, most).round().astype(np.int64))
    costs: list[float] = []
    for step in map(schedule.step, numbers.tolist()):
        rows = schedule.rows(step, layout=layout)
        share = step.num_targets / step.num_tokens
        each = flops_per_token(shape, schedule.lengths[step.documents], share, lora=lora)
        costs.append(each * num_places(rows, schedule.lengths, layout, among))
    return WeighedSteps(numbers, np.array(costs))


def evaluated_steps(config: SFTConfig, num_steps: int) -> set[int]:
    """The steps behind which a run is evaluated: before the first (0), at its interval, and the last."""
    every = config.evaluation.every
    return {0, num_steps, *(range(every, num_steps, every) if every else ())}


def saved_steps(config: SFTConfig, num_steps: int, *, has_dev: bool) -> set[int]:
    """The steps behind which a checkpoint is written, if every evaluation is the best so far."""
    every = config.checkpoints.every
    is_measured = has_dev or not needs_dev(config.evaluation.best_by)
    best = evaluated_steps(config, num_steps) - {0} if is_measured else set[int]()
    return {num_steps, *best, *(range(every, num_steps, every) if every else ())}


@dataclass(frozen=True, slots=True)
class Rough:
    """Between how many seconds a run's steps and evaluations take, and the rate of products it follows from.

    rate: floating-point operations per second
    """

    least: float
    most: float
    rate: float


def rough_duration(
    steps: WeighedSteps, config: SFTConfig, schedule: Schedule, *, evaluated_tokens: int, rate: float
) -> Rough:
    """What steps and evaluations take, from the rate of matrix products alone.

    evaluated_tokens: of one evaluation, which costs a third of what training them would
    """
    flops = float(steps.costs.mean()) * schedule.num_steps
    per_token = flops / max(1, schedule.totals(schedule.num_steps)[0])
    num_evaluations = len(evaluated_steps(config, schedule.num_steps))
    seconds = (flops + num_evaluations * evaluated_tokens * per_token / 3) / rate
    least, most = _SLOWER_THAN_PRODUCTS
    return Rough(least * seconds, most * seconds, rate)


def _reversed_bits(number: int) -> float:
    """The van der Corput sequence: 1/2, 1/4, 3/4, 1/8, 5/8, …, of which any beginning is spread evenly."""
    return int(f"{number:b}"[::-1], 2) / (1 << number.bit_length())
