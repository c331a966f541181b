"""The verb `report`: a run, or several runs side by side, as one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import problems_of_place
from finetooth.base.terminal import print_line
from finetooth.reporting.comparison_page import MOST_RUNS, NAME, write_comparison
from finetooth.reporting.findings import findings_of
from finetooth.reporting.report_page import write_report
from finetooth.reporting.run_reading import read_run


def report(
    targets: Sequence[str], *, out: Path | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Writes the page; returns where it stands, and what it says first of each run.

    targets: run directories; of one, its own report is written anew, of several, a comparison
    out:     the page; default: report.html in the run directory, or comparison.html where the command runs
    Raises ConfigError for what is no run directory, and for a page that cannot stand there.
    """
    console = console or Console(quiet=True)
    _require_sensible(targets, out)
    runs = [read_run(target) for target in targets]
    page = write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out or Path(NAME))
    print_line(console, f"{'report' if len(runs) == 1 else 'comparison'}: {page}")
    return {
        "report": str(page),
        "runs": [
            {
                "run": run.name,
                "state": run.state,
                "findings": [
                    {"name": finding.name, "state": finding.state, "fact": finding.fact, "told": finding.told}
                    for finding in findings_of(run)
                ],
            }
            for run in runs
        ],
    }


def _require_sensible(targets: Sequence[str], out: Path | None) -> None:
    problems = [
        problem("command line", f"{target} is named twice", "name each run once")
        for target in dict.fromkeys(targets)
        if targets.count(target) > 1
    ]
    if len(targets) > MOST_RUNS:
        fact = f"{len(targets)} runs are more than a page can show side by side"
        problems.append(problem("command line", fact, f"name at most {MOST_RUNS}"))
    if out is not None:
        problems += problems_of_place(out, option="--out")
    if problems:
        raise ConfigError(problems)
