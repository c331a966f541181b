"""How long a run takes, for people and as data: as a trial measured it, or roughly, from matrix products."""

from dataclasses import asdict
from typing import Any

from finetooth.base.machine import gigabytes
from finetooth.reporting.numerals import duration
from finetooth.training.duration import Part, Rough
from finetooth.training.trial_process import Trial

# What is done at an evaluation, and what else; parts are told in this order, and those of one name together.
_TOLD = {
    "start": ("start",),
    "steps": ("steps",),
    "evaluations": ("losses", "answers"),
    "checkpoints": ("checkpoints",),
    "end": ("policy", "report", "end"),
}


def measured_rows(trial: Trial) -> list[tuple[str, str]]:
    """What is printed of a trial: names, and what they are."""
    told = {
        name: sum(trial.parts[part].seconds for part in parts if part in trial.parts)
        for name, parts in _TOLD.items()
    }
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in told.items())
    again = "" if trial.recompute == "nothing" else f", recompute: {trial.recompute}"
    in_part = "; ".join(_extrapolated(name, part) for name, part in trial.parts.items() if not part.is_whole)
    rows = [
        ("peak", f"{gigabytes(trial.peak_memory)}, measured on {trial.device}{again}"),
        ("time", f"about {duration(trial.run_seconds)}: {parts}"),
        ("measured", f"in {duration(trial.seconds)}" + (f": {in_part}" if in_part else "")),
    ]
    return [*rows, *_remarks(trial)]


def measured_time(trial: Trial) -> dict[str, Any]:
    """The same as data, in seconds; every part with what of it was measured."""
    return {
        "basis": "measured",
        "seconds": round(trial.run_seconds, 3),
        "parts": {name: asdict(part) for name, part in trial.parts.items()},
        "trial_seconds": round(trial.seconds, 3),
    }


def rough_row(rough: Rough) -> tuple[str, str]:
    """What is printed where nothing was measured but matrix products."""
    between = f"roughly {duration(rough.least)} to {duration(rough.most)} of steps"
    basis = f"from {rough.rate / 1e9:,.0f} GFLOP/s of matrix products"
    return "time", f"{between}, {basis}; --measure tells better"


def rough_time(rough: Rough) -> dict[str, Any]:
    """The same as data, in seconds."""
    return {"basis": "matrix products", **asdict(rough)}


def _extrapolated(name: str, part: Part) -> str:
    if part.counted == "bytes":
        return f"{name}: {gigabytes(part.measured)} of {gigabytes(part.in_all)}"
    counted = "" if part.counted == name else f" {part.counted}"
    return f"{name}: {part.measured:,} of {part.in_all:,}{counted}"


def _remarks(trial: Trial) -> list[tuple[str, str]]:
    answers = trial.parts.get("answers")
    if answers is None:
        return []
    each = duration(answers.seconds / answers.times)
    return [("answers", f"{each} per evaluation as the base writes them; a trained policy may be quicker")]
