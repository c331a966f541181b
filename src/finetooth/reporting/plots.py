"""The curves of one or several runs as shapes in numbers, which a template draws.

Panels lie one below the other and share their horizontal axis. Heights are pixels; places across are shares
of the width in percent, so that a page draws them as wide as it is, and its text at its own size.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from finetooth.reporting.course import Course, Points, is_number, thinned
from finetooth.reporting.numerals import count, figure

Axis = Literal["step", "tokens"]

# Paths are drawn in a box of this width, which the page stretches.
WIDTH = 1000
_MOST_POINTS = 400
_MOST_POINTS_OF_SEVERAL = 200
_HEIGHTS = {"loss": 210, "dev_loss": 150}
_HEIGHT = 84
_ABOVE, _BELOW = 40, 30
# Positive values that differ more than so many times are drawn on a logarithmic scale.
_LOGARITHMIC_FROM = 40
# A scale ends where so many percent of the updates do, if the highest lies so many times above that.
_PEAKS_WITHIN = 99
_FAR_ABOVE = 1.5
_TITLES = {
    "loss": "loss",
    "dev_loss": "dev loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "peak_memory_mb": "peak memory, MB",
}
_FROM_ZERO = ("learning_rate", "tokens_per_second", "peak_memory_mb")


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of an axis: across in percent or down in pixels."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A single value, or a remark about a step, which pointing at it tells; kind: train, dev, spike, …"""

    across: float
    down: float
    kind: str
    told: str


@dataclass(frozen=True, slots=True)
class Line:
    """A path through values, or the area between two of them; kind: line, faint or band."""

    kind: str
    number: int
    path: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity; top and height in pixels; last: the last value of each run."""

    name: str
    title: str
    top: float
    height: float
    ticks: list[Tick]
    lines: list[Line]
    dots: list[Dot]
    last: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Zone:
    """What is told where the pointer is: a place, and for each panel the value of each run."""

    start: float
    width: float
    across: float
    place: str
    values: list[tuple[float, list[tuple[int, str]]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """All panels of an axis."""

    axis: Axis
    height: float
    ticks: list[Tick]
    panels: list[Panel]
    zones: list[Zone]
    described: str


@dataclass(frozen=True)
class _Drawn:
    """A run as it is drawn: where its points lie across, from 0 on."""

    number: int
    course: Course
    points: Points
    axis: Axis

    @functools.cached_property
    def xs(self) -> np.ndarray:
        """The place of each point: the middle of the updates for which it stands."""
        return self.places((self.points.first + self.points.last) / 2)

    @functools.cached_property
    def end(self) -> float:
        """Where the last logged update lies."""
        return float(self.places(self.course.steps[-1:])[0])

    def places(self, steps: np.ndarray) -> np.ndarray:
        """Where steps lie."""
        return steps if self.axis == "step" else self.course.tokens_through(steps)

    @functools.cached_property
    def notes(self) -> list[tuple[float, Mapping[str, Any]]]:
        """Remarks about steps, each with its place."""
        steps = np.array([note["step"] for note in self.course.notes], np.float64)
        return list(zip(self.places(steps).tolist(), self.course.notes, strict=True))

    def evaluated(self, name: str) -> list[tuple[float, int, float]]:
        """Place, step and value of each evaluation that has one."""
        lines = [line for line in self.course.evaluations if is_number(line.get(name))]
        places = self.places(np.array([line["step"] for line in lines], np.float64)).tolist()
        return [(x, line["step"], line[name]) for x, line in zip(places, lines, strict=True)]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values of a panel lie, from the top of its plot downwards; the highest may lie above it."""

    low: float
    high: float
    is_logarithmic: bool
    height: float
    highest: float

    @property
    def note(self) -> str:
        """What has to be said about it."""
        notes = ["log scale"] if self.is_logarithmic else []
        if self.highest > self.high:
            notes.append(f"peaks to {figure(self.highest)}")
        return "".join(f", {note}" for note in notes)

    def down(self, value: float) -> float:
        low, high = (self._moved(edge) for edge in (self.low, self.high))
        return round(self.height * (high - self._moved(value)) / (high - low), 2)

    def _moved(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_logarithmic else value


def figure_of(courses: Sequence[Course], axis: Axis) -> Figure | None:
    """The curves of runs against their steps or tokens; None where no run has logged an update."""
    most = _MOST_POINTS if len(courses) == 1 else _MOST_POINTS_OF_SEVERAL
    runs = [
        _Drawn(number, course, thinned(course, most=most), axis)
        for number, course in enumerate(courses)
        if len(course.steps)
    ]
    if not runs:
        return None
    end = max(run.end for run in runs) or 1.0
    panels = list(_panels(runs, end, is_alone=len(courses) == 1))
    return Figure(
        axis=axis,
        height=panels[-1].top + panels[-1].height + _BELOW,
        ticks=[Tick(_across(value, end), count(value)) for value in _whole_ticks(end)],
        panels=panels,
        zones=list(_zones(runs, panels, axis, end)),
        described=f"{', '.join(panel.title for panel in panels)}, by {axis}",
    )


def _panels(runs: Sequence[_Drawn], end: float, *, is_alone: bool) -> Iterator[Panel]:
    names = [name for name in _TITLES if _has(runs, name, is_alone=is_alone)]
    top = 0.0
    for name in names:
        height = _HEIGHTS.get(name, _HEIGHT)
        scale = _scale_of(name, runs, height)
        yield Panel(
            name=name,
            title=_TITLES[name] + scale.note,
            top=top + _ABOVE,
            height=height,
            ticks=[Tick(scale.down(value), figure(value)) for value in _ticks(scale)],
            lines=[line for run in runs for line in _lines(run, name, scale, end, is_alone=is_alone)],
            dots=list(_dots(runs, name, scale, end, is_alone=is_alone)),
            last=[_value_at(run, name, float(run.xs[-1])) for run in runs],
        )
        top += _ABOVE + height


def _has(runs: Sequence[_Drawn], name: str, *, is_alone: bool) -> bool:
    """Whether a panel has anything to show; dev losses of a single run stand in the panel of its loss."""
    if name == "dev_loss":
        return not is_alone and any(run.evaluated("dev_loss") for run in runs)
    return any(np.isfinite(run.points.mean[name]).any() for run in runs)


def _scale_of(name: str, runs: Sequence[_Drawn], height: float) -> _Scale:
    """From the lowest to the highest value, but not to that of single updates far above the others."""
    means, peaks = _values(name, runs)
    low, high, highest = min(means), max(means), max(peaks, default=-math.inf)
    if peaks:
        low, high = min(low, float(np.min(peaks))), max(high, float(np.percentile(peaks, _PEAKS_WITHIN)))
        high = highest if highest <= _FAR_ABOVE * high else high
    is_logarithmic = name not in _FROM_ZERO and low > 0 and high / low >= _LOGARITHMIC_FROM
    if is_logarithmic:
        return _Scale(low * 0.9, high * 1.1, True, height, highest)
    if name in _FROM_ZERO:
        low = min(low, 0.0)
    ticks = _even_ticks(low, high, 4)
    return _Scale(min(low, ticks[0]), max(high, ticks[-1]), False, height, highest)


def _values(name: str, runs: Sequence[_Drawn]) -> tuple[list[float], list[float]]:
    """Means and measurements, all of which are drawn; of a single run, also lows and highs of updates."""
    if name == "dev_loss":
        return [value for run in runs for *_, value in run.evaluated(name)], []
    means = [value for run in runs for value in run.points.mean[name].tolist()]
    if name == "loss" and len(runs) == 1:
        means += [value for kind in ("train_loss", "dev_loss") for *_, value in runs[0].evaluated(kind)]
    drawn = runs if len(runs) == 1 else ()
    tables = [table[name] for run in drawn for table in (run.points.low, run.points.high)]
    peaks = [value for table in tables for value in table.tolist()]
    return [value for value in means if math.isfinite(value)], [v for v in peaks if math.isfinite(v)]


def _ticks(scale: _Scale) -> list[float]:
    if not scale.is_logarithmic:
        return [tick for tick in _even_ticks(scale.low, scale.high, 4) if scale.low <= tick <= scale.high]
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    digits = (1,) if len(decades) > 3 else (1, 3)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return [tick for tick in ticks if scale.low <= tick <= scale.high]


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values of even distance that enclose low and high.

    >>> _even_ticks(0.3, 2.1, 4), _even_ticks(0, 82, 6), _even_ticks(5, 5, 4)
    ([0.0, 1.0, 2.0, 3.0], [0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.0, 2.0, 4.0, 6.0])
    """
    if high <= low:
        low, high = (0.0, high) if high > 0 else (low, low + 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    distance = next(
        step * power
        for step in (1, 2, 5, 10, 20, 50)
        if math.ceil(high / (step * power)) - math.floor(low / (step * power)) <= most
    )
    first, last = math.floor(low / distance), math.ceil(high / distance)
    return [round(place * distance, 12) for place in range(first, last + 1)]


def _whole_ticks(end: float) -> list[float]:
    """Those of steps or tokens, of which there are no halves.

    >>> _whole_ticks(3)
    [0.0, 1.0, 2.0, 3.0]
    """
    return [value for value in _even_ticks(0, end, 6) if value <= end and value.is_integer()]


def _lines(run: _Drawn, name: str, scale: _Scale, end: float, *, is_alone: bool) -> Iterator[Line]:
    if name == "dev_loss":
        yield Line("line", run.number, _evaluation_path(run, name, scale, end))
        return
    points, xs = run.points, run.xs / end
    mean, smooth = points.mean[name], points.smooth if name == "loss" else None
    if is_alone and (points.high[name] > points.low[name]).any():
        yield Line("band", run.number, _band(xs, points.low[name], points.high[name], scale))
    if smooth is not None and is_alone:
        yield Line("faint", run.number, _path(xs, mean, scale))
    yield Line("line", run.number, _path(xs, mean if smooth is None else smooth, scale))
    if is_alone and name == "loss":
        for kind in ("train_loss", "dev_loss"):
            if len(run.evaluated(kind)) > 2:  # a line through two would tell of a course nobody measured
                yield Line(kind.removesuffix("_loss"), run.number, _evaluation_path(run, kind, scale, end))


def _evaluation_path(run: _Drawn, name: str, scale: _Scale, end: float) -> str:
    table = np.array(run.evaluated(name), np.float64).reshape(-1, 3)
    return _path(table[:, 0] / end, table[:, 2], scale)


def _path(xs: np.ndarray, values: np.ndarray, scale: _Scale) -> str:
    """A line through the values that are known; it is broken where one is not."""
    parts: list[str] = []
    command = "M"
    for x, value in zip(xs.tolist(), values.tolist(), strict=True):
        if math.isfinite(value):
            parts.append(f"{command}{WIDTH * x:.5g} {scale.down(value):g}")
        command = "L" if math.isfinite(value) else "M"
    return "".join(parts)


def _band(xs: np.ndarray, low: np.ndarray, high: np.ndarray, scale: _Scale) -> str:
    known = np.isfinite(low) & np.isfinite(high)
    there = [(x, scale.down(v)) for x, v in zip(xs[known].tolist(), high[known].tolist(), strict=True)]
    back = [(x, scale.down(v)) for x, v in zip(xs[known].tolist(), low[known].tolist(), strict=True)]
    corners = [f"{WIDTH * x:.5g} {y:g}" for x, y in [*there, *reversed(back)]]
    return f"M{'L'.join(corners)}Z" if corners else ""


def _dots(runs: Sequence[_Drawn], name: str, scale: _Scale, end: float, *, is_alone: bool) -> Iterator[Dot]:
    kinds = ("train_loss", "dev_loss") if name == "loss" and is_alone else ("dev_loss",)
    if name == "dev_loss" or (name == "loss" and is_alone):
        for run, kind in itertools.product(runs, kinds):
            for x, step, value in run.evaluated(kind):
                told = f"step {step:,}: {kind.replace('_', ' ')} {figure(value)}"
                shown = kind.removesuffix("_loss") if is_alone else f"c{run.number}"
                yield Dot(_across(x, end), scale.down(value), shown, told)
    if name == "loss" and is_alone:
        for x, note in runs[0].notes:
            kind = next(kind for kind in ("skipped", "spike", "changes") if kind in note)
            told = f"step {note['step']:,}: {_told(kind, note[kind])}"
            yield Dot(min(100.0, _across(x, end)), scale.height, kind, told)


def _told(kind: str, noted: Any) -> str:
    if kind == "skipped":
        return "skipped, as loss or gradient was not finite"
    if kind == "spike" and isinstance(noted, Mapping) and is_number(noted.get("usual_loss")):
        return f"the loss lies far above the usual {figure(noted['usual_loss'])}"
    return "a spike of the loss" if kind == "spike" else "settings or records changed from here on"


def _across(value: float, end: float) -> float:
    return round(100 * value / end, 3)


def _zones(runs: Sequence[_Drawn], panels: Sequence[Panel], axis: Axis, end: float) -> Iterator[Zone]:
    """One for each point of the run that goes farthest; of the others, the point that lies there."""
    longest = max(runs, key=lambda run: run.end)
    xs = longest.xs
    middles = (xs[1:] + xs[:-1]) / 2
    starts, stops = [0.0, *middles.tolist()], [*middles.tolist(), end]
    for place, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        x = float(xs[place])
        first, last = int(longest.points.first[place]), int(longest.points.last[place])
        told = f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"
        if axis == "tokens":
            told = f"{count(float(longest.points.tokens[place]))} tokens, {told}"
        values = [(panel.top, [_value_at(run, panel.name, x) for run in runs]) for panel in panels]
        width = _across(stop - start, end)
        yield Zone(_across(start, end), width, _across(x, end), told, values)


def _value_at(run: _Drawn, name: str, x: float) -> tuple[int, str]:
    """The run's number, and its value at a place across."""
    reach = run.end * (1 + 0.5 / len(run.points.last))
    place = int(np.abs(run.xs - x).argmin())
    if name == "dev_loss":
        step = float(run.points.last[place])
        known = [value for _, at, value in run.evaluated(name) if at <= step]
        return run.number, figure(known[-1]) if known and x <= reach else "–"
    value = float(run.points.mean[name][place])
    return run.number, figure(value) if math.isfinite(value) and x <= reach else "–"
