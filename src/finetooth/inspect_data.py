"""`finetooth inspect`: looks at a record, a step or samples of what is trained, token by token."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.base.files import problems_of_place, write_atomically
from finetooth.base.terminal import print_line
from finetooth.config.schema import SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.pieces import document_data
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.reporting.page import Facts, html_page
from finetooth.reporting.record_report import find_record, report_record, report_unprepared
from finetooth.reporting.samples import Sample, choose_samples
from finetooth.reporting.step_report import StepReport, report_step
from finetooth.reporting.summary import show_summary, summary_counts, summary_data, summary_remarks
from finetooth.reporting.terminal_view import TerminalView, show_step

_SAMPLE_CHARACTERS = 1500
_SAMPLES_ON_TERMINAL = 1
_SAMPLES_ON_PAGE = 4


def inspect(
    config: SFTConfig,
    *,
    record: str | None = None,
    step: int | None = None,
    rank: int | None = None,
    world: int | None = None,
    row: int | None = None,
    ids: bool = False,
    html: Path | None = None,
    console: Console,
) -> dict[str, Any]:
    """Shows one record (by its number from 1, or its origin), the rows of a step, or samples of all.

    rank, world, row: of the step, the rows of that rank of so many; the tokens of its row, counted from 1
    ids:              a line per token, with its id
    html:             writes the samples, or the record, as a page
    Returns what is shown as one JSON object. Raises ConfigError for what does not exist, and DataError and
    ConfigError as `prepare_data` does; but records that stop it can be looked at.
    """
    _require_sensible(record=record, step=step, rank=rank, world=world, row=row, html=html)
    prepared, stops = _prepare(config, is_needed=record is None, console=console)
    if step is not None:
        assert prepared is not None
        report = report_step(
            prepared.train_documents, config, number=step, rank=rank or 0, world_size=world or 1
        )
        if row is not None:
            return _inspect_row(report, row, TerminalView(console, prepared.tokenizer, ids))
        show_step(report, console)
        return {"step": report.as_data()}
    if record is not None:
        sample, tokenizer = _look_up(prepared, config, record)
        samples = [sample]
        TerminalView(console, tokenizer, ids).record(sample)
        result: dict[str, Any] = {"record": sample.record.as_data(tokenizer)}
    else:
        assert prepared is not None
        tokenizer = prepared.tokenizer
        num_each = _SAMPLES_ON_TERMINAL if html is None else _SAMPLES_ON_PAGE
        samples = choose_samples(prepared, config, num_each=num_each, is_rendered=html is not None)
        _show_summary(prepared, config, stops, console)
        if html is None:
            for sample in samples:
                TerminalView(console, tokenizer, ids, _SAMPLE_CHARACTERS).record(sample)
        listed = [{"kinds": list(s.kinds), **s.record.as_data(tokenizer)} for s in samples]
        result = {**summary_data(prepared), "stops_prepare": stops, "samples": listed}
    if html is not None:
        page = html_page(_facts(prepared, config, stops), samples, tokenizer)
        write_atomically(html, page.encode())
        print_line(console, f"page: {html}")
        result["html"] = str(html)
    return result


def _require_sensible(
    *,
    record: str | None,
    step: int | None,
    rank: int | None,
    world: int | None,
    row: int | None,
    html: Path | None,
) -> None:
    problems: list[str] = []
    if step is None:
        for name, value in (("--rank", rank), ("--world", world), ("--row", row)):
            if value is not None:
                problems.append(problem(name, "belongs to a step", "add --step, or leave it out"))
    else:
        if record is not None:
            problems.append(problem("--record", "a record and a step at once", "ask for one of them"))
        if html is not None:
            fact = "a page shows samples or one record, not a step"
            problems.append(problem("--html", fact, "leave out --step, or leave out --html"))
    if html is not None:
        problems += problems_of_place(html, option="--html")
    if problems:
        raise ConfigError(problems)


def _prepare(
    config: SFTConfig, *, is_needed: bool, console: Console
) -> tuple[PreparedData | None, list[str]]:
    """What is prepared, and why `prepare` stops: then it is what is left without the records that stop it.

    Where none is left, None, or if it is needed the error that tells it.
    """
    try:
        return prepare_data(config, console=console), []
    except DataError as error:
        stopping = ("on_bad_record", "on_long_document", "on_duplicate", "on_leak")
        dropping = {name: "drop" for name in stopping if getattr(config.data, name) == "error"}
        data = dataclasses.replace(config.data, **dropping)
        try:
            return prepare_data(dataclasses.replace(config, data=data), console=console), error.problems
        except DataError as without:
            if is_needed:
                raise DataError(dict.fromkeys([*error.problems, *without.problems])) from None
            return None, error.problems


def _inspect_row(report: StepReport, row: int, view: TerminalView) -> dict[str, Any]:
    if row > len(report.rows):
        fact = f"rank {report.rank} has no row {row} in step {report.step.number}"
        raise ConfigError(problem("--row", fact, f"give a number from 1 to {len(report.rows)}"))
    view.row(report, row)
    documents = [document_data(document, view.tokenizer) for document in report.rows[row - 1].documents]
    return {"step": report.as_data(), "row": row, "documents": documents}


def _look_up(prepared: PreparedData | None, config: SFTConfig, wanted: str) -> tuple[Sample, Tokenizer]:
    if prepared is None:
        report, tokenizer = report_unprepared(config, wanted)
        return Sample((), report), tokenizer
    report = report_record(prepared, config, find_record(prepared, wanted))
    return Sample((), report), prepared.tokenizer


def _show_summary(prepared: PreparedData, config: SFTConfig, stops: Sequence[str], console: Console) -> None:
    print_line(console, f"{describe_sources(config.data.train)}: template {prepared.template_name}")
    print_line(console, f"ledger and stores: {prepared.folder}")
    console.print()
    show_summary(prepared, config, console)
    for line in _stop_remarks(stops):
        print_line(console, line)


def _stop_remarks(stops: Sequence[str]) -> list[str]:
    if not stops:
        return []
    records = f"{len(stops):,} records" if len(stops) > 1 else "a record"
    return [f"finetooth prepare stops at {records}; the first: {stops[0]}"]


def _facts(prepared: PreparedData | None, config: SFTConfig, stops: Sequence[str]) -> Facts:
    """What a page says beside its samples; where nothing could be prepared, only why."""
    settings = (
        ("template", prepared.template_name if prepared else config.data.template),
        ("tokenizer", config.model.tokenizer or config.model.path or ""),
        ("longest allowed", f"{config.data.max_length:,} tokens"),
        ("loss on", config.data.loss_on),
    )
    remarks = _stop_remarks(stops)
    if prepared is None:
        return Facts(describe_sources(config.data.train), settings, remarks=tuple(remarks))
    return Facts(
        headline=describe_sources(config.data.train),
        properties=(*settings, ("prepared in", str(prepared.folder))),
        splits=summary_counts(prepared),
        remarks=(*summary_remarks(prepared, config), *remarks),
        lengths=prepared.train.lengths,
    )
