"""Verdicts on properties that were measured, as a table for people and as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from finetooth.base.terminal import plain_text, print_line

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One property, held against a limit.

    measured: a difference or a number of violations; None where it was skipped
    what:     what was compared; of a property that was skipped, why
    """

    name: str
    measured: float | None
    limit: float
    what: str

    @property
    def state(self) -> Literal["passed", "failed", "skipped"]:
        """passed where measured is within the limit; what is not a number is not."""
        if self.measured is None:
            return "skipped"
        return "passed" if self.measured <= self.limit else "failed"

    def as_data(self) -> dict[str, Any]:
        """The verdict as JSON holds it, which knows no infinity: there, `measured` is text."""
        known = self.measured is None or abs(self.measured) < float("inf")
        measured = self.measured if known else str(self.measured)
        return {
            "name": self.name,
            "state": self.state,
            "measured": measured,
            "limit": self.limit,
            "what": self.what,
        }


def skipped(name: str, why: str) -> Verdict:
    """The verdict on a property that could not be measured here."""
    return Verdict(name, None, 0.0, why)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each verdict, within 80 columns."""
    table = Table(box=None, pad_edge=False)
    for name in ("property", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("measured", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what was compared", overflow="fold")
    for verdict in verdicts:
        table.add_row(
            verdict.name,
            f"[{_STYLES[verdict.state]}]{verdict.state}[/]",
            _shown(verdict.measured),
            "" if verdict.measured is None else _shown(verdict.limit, digits=0),
            plain_text(verdict.what),
        )
    return table


def conclude(verdicts: Sequence[Verdict], console: Console) -> dict[str, Any]:
    """Prints which properties failed; returns the verdicts as JSON holds them, and whether none failed."""
    failed = [verdict.name for verdict in verdicts if verdict.state == "failed"]
    print_line(console, f"failed: {', '.join(failed)}" if failed else "all that was measured holds")
    return {
        "passed": not failed,
        "failed": failed,
        "verdicts": [verdict.as_data() for verdict in verdicts],
    }


def _shown(value: float | None, *, digits: int = 1) -> str:
    """Numbers of violations as they are, differences as powers of ten."""
    if value is None:
        return ""
    return f"{value:.0f}" if value == 0 or 1 <= value < 1e6 else f"{value:.{digits}e}"
