"""The report of one run as one HTML page: how it went, what it was trained on, what it can do now.

The page needs nothing else: no script, no font, no network. Its own policy allows its one style sheet, by
its hash, and nothing besides. Whatever comes from a run is escaped twice over: characters that do not print
become visible escapes, and Jinja2 escapes the rest for HTML.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetooth.base.files import write_atomically
from finetooth.config.keys import SETTINGS
from finetooth.reporting.before_after import before_after
from finetooth.reporting.data_view import data_view
from finetooth.reporting.evaluated_answers import evaluated_answers
from finetooth.reporting.evaluation_view import evaluation_table, headline
from finetooth.reporting.findings import findings_of
from finetooth.reporting.numerals import duration
from finetooth.reporting.plots import figure_of
from finetooth.reporting.rendering import rendered_within
from finetooth.reporting.run_reading import Run
from finetooth.reporting.serving import serving_commands
from finetooth.reporting.settings_view import settings_by_section

NAME = "report.html"


def report_page(run: Run) -> str:
    """The whole page, at most 2 MB: long texts are shown in part, and it says so."""
    answers = list(run.answers.values())
    return rendered_within(
        "report.html.jinja",
        run=run,
        title=Path(run.name).name or run.name,
        told=list(_told(run)),
        headline=headline(run),
        findings=findings_of(run),
        figures=[figure_of([run.course], axis) for axis in ("step", "tokens")],
        data=data_view(run),
        before_after=before_after(*answers) if len(answers) == 2 else None,
        answer_steps=list(run.answers),
        evaluated=evaluated_answers(run.evaluated),
        evaluations=evaluation_table(run),
        settings=settings_by_section(run),
        num_settings=len(SETTINGS),
        reproduction=list(_reproduction(run)),
        commands=list(_commands(run)),
    )


def write_report(run: Run, path: Path | None = None) -> Path:
    """Writes the page, by default into the run directory; returns where it stands."""
    path = path or run.folder / NAME
    write_atomically(path, report_page(run).encode())
    return path


def _told(run: Run) -> Iterator[str]:
    """How the run went, in a few facts."""
    summary, planned = run.summary, run.schedule.get("num_steps")
    done = summary.get("num_steps", int(run.course.steps[-1]) if len(run.course.steps) else 0)
    yield f"{done:,} steps" if done == planned or planned is None else f"{done:,} of {planned:,} steps"
    if "ended_early" in summary:
        yield f"ended early after {summary['ended_early']}"
    if summary.get("final_step", done) != done:
        by = run.config.evaluation.best_by
        yield f"final/ holds step {summary['final_step']:,}, the best by {by}"
    for name, what in (("num_documents", "documents"), ("num_tokens", "tokens"), ("num_targets", "targets")):
        if name in summary:
            yield f"{summary[name]:,} {what}"
    if "seconds" in summary:
        yield duration(summary["seconds"])
    if "device" in run.environment:
        yield str(run.environment["device"])


def _reproduction(run: Run) -> Iterator[tuple[str, str]]:
    """Name and value of everything that must be the same for the same run."""
    environment = run.environment
    if "command" in environment:
        yield "command", _command_line([str(part) for part in environment["command"]])
    versions = environment.get("versions", {})
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    for name in ("python", "platform", "device"):
        if name in environment:
            yield name, str(environment[name])
    yield "seed", str(run.config.training.seed)
    noted: Mapping[str, Any] = environment.get("template", {})
    if noted.get("now"):
        yield "time that the template tells", str(noted["now"])
    if "fingerprint" in run.schedule:
        yield "schedule", str(run.schedule["fingerprint"])
    yield from _hashes(run)


def _hashes(run: Run) -> Iterator[tuple[str, str]]:
    if run.data is not None:
        for split, counts in run.data.summary.get("splits", {}).items():
            yield f"documents of {split}", str(counts["fingerprint"])
        for source in run.data.sources:
            for file, sha256 in source["files"]:
                yield f"SHA-256 of {file}", str(sha256)
    for file, sha256 in run.hashes.items():
        yield f"SHA-256 of final/{file}", sha256


def _command_line(arguments: list[str]) -> str:
    """As it would be typed again."""
    program, *rest = arguments or ["finetooth"]
    return shlex.join(["finetooth" if Path(program).name == "__main__.py" else Path(program).name, *rest])


def _commands(run: Run) -> Iterator[tuple[str, str]]:
    """Titles and shell commands: what can be done with the run as it is."""
    name = shlex.quote(run.name)
    config = shlex.quote(f"{run.name.rstrip('/')}/config.yaml")
    if not run.state.startswith("running") and (run.state != "finished" or run.form is None):
        yield "Go on where it ended", f"finetooth train {config} --resume auto"
    if run.form is None:
        return
    yield "Talk to it", f"finetooth chat {name}"
    yield "Measure it again", f"finetooth eval {name}"
    base = "BASE" if run.config.model.path is None else shlex.quote(run.config.model.path)
    if run.config.model.path is not None:
        yield "Beside its base", f"finetooth compare {base} {name} --prompt 'TEXT'"
    form = "pt" if run.form == "pt" else "adapter" if run.form == "adapter" else "folder"
    check = "" if form == "pt" else " --verify"
    yield "Write it for other programs", f"finetooth export {name} --to {form}{check}"
    yield "The same run once more", f"finetooth train {config} output_dir=NEW"
    for title, command in serving_commands(run.form, base, run.config.adapter):
        if not command.startswith("finetooth "):
            yield f"{title}, in final/", command
