"""What became of a config's records, as a table, as sentences and as data."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from finetooth.base.terminal import plain_text, print_line
from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Counts
from finetooth.data.masks.masking import RenderReport
from finetooth.data.preparation import PreparedData
from finetooth.data.store import DocumentStore

_REASONS_SHOWN = 5


def show_summary(prepared: PreparedData, config: SFTConfig, console: Console) -> None:
    """Prints the counts of each split, the figures of each source, and sentences about the rest."""
    console.print(_table(prepared))
    if (table := _sources_table(prepared)) is not None:
        console.print()
        console.print(table)
        console.print()
    for line in summary_remarks(prepared, config):
        print_line(console, line)


def summary_counts(prepared: PreparedData) -> dict[str, dict[str, str]]:
    """By split, name and value of each count, in words for people."""
    return {
        split: _counts(prepared.counts[split]) | _lengths(prepared.statistics[split])
        for split in _stores(prepared)
    }


def summary_remarks(prepared: PreparedData, config: SFTConfig) -> list[str]:
    """Sentences about what was not kept, and why, not read or changed."""
    reasons = Counter[str]()
    for count in prepared.counts.values():
        reasons.update(count.reasons)
    remarks = [f"{number:,} × {reason}" for reason, number in reasons.most_common(_REASONS_SHOWN)]
    if len(reasons) > _REASONS_SHOWN:
        remarks.append(f"{len(reasons) - _REASONS_SHOWN} other reasons stand in the ledger")
    return remarks + remarks_on_kept(prepared, config)


def remarks_on_kept(prepared: PreparedData, config: SFTConfig) -> list[str]:
    """Sentences about what was not read or changed."""
    remarks: list[str] = []
    for name, number in prepared.unread_fields.items():
        remarks.append(f"not read: {name!r}, in {number:,} records")
    if prepared.has_more_records:
        limit = config.data.max_records
        where = "the max_records of a source" if limit is None else f"data.max_records ({limit})"
        remarks.append(f"records beyond {where} were not read")
    if prepared.num_near_duplicates:
        remarks.append(f"{prepared.num_near_duplicates:,} records almost equal to an earlier one, kept")
    num_per_epoch = len(prepared.train_documents.lengths)
    if num_per_epoch > prepared.train.num_documents:
        remarks.append(f"{num_per_epoch:,} documents per epoch, with those that are repeated")
    return remarks + _changes(prepared.report)


def _changes(report: RenderReport) -> list[str]:
    counts = (
        (report.num_trimmed, "characters of whitespace cut off by the template"),
        (report.num_behind, "messages behind the last answer that is trained, left out"),
        (report.num_rewritten, "conversations in several documents, as the template rewrites history"),
        (report.num_reasoning, "answers whose leading <think>…</think> was read as reasoning"),
        (report.num_unwritten, "answers whose reasoning the template drops, so that no document holds it"),
        (report.num_seams, "documents in which the prompt was encoded apart, as in use"),
        (report.num_other_blocks, "turns around which the template's generation block holds more or less"),
        (report.num_divided, "texts divided into windows of data.max_length"),
        (report.num_end_tokens, "end tokens of given tokens made targets"),
        (report.num_left_out, "messages left out at the start of long conversations"),
    )
    changes = [f"{number:,} {what}" for number, what in counts if number]
    names = sorted(report.control_text.items(), key=lambda entry: -entry[1])
    return changes + [
        f"{number:,} × {name!r} in the text of records, kept as plain text"
        for name, number in names[:_REASONS_SHOWN]
    ]


def summary_data(prepared: PreparedData) -> dict[str, Any]:
    """The same as JSON holds it."""
    return {
        "folder": str(prepared.folder),
        "ledger": str(prepared.folder / "ledger.jsonl"),
        "is_reused": prepared.is_reused,
        "template": prepared.template_name,
        "unread_fields": prepared.unread_fields,
        "has_more_records": prepared.has_more_records,
        "num_near_duplicates": prepared.num_near_duplicates,
        "documents_per_epoch": len(prepared.train_documents.lengths),
        **dataclasses.asdict(prepared.report),
        "splits": {
            split: dataclasses.asdict(prepared.counts[split])
            | {"longest": int(store.lengths.max()), "fingerprint": store.fingerprint}
            | {"statistics": prepared.statistics[split]}
            for split, store in _stores(prepared).items()
        },
    }


def _table(prepared: PreparedData) -> Table:
    """The counts of each split, one below the other."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    splits = summary_counts(prepared)
    for split in splits:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for counts in splits.values() for name in counts):
        table.add_row(name, *(counts.get(name, "") for counts in splits.values()))
    return table


def _sources_table(prepared: PreparedData) -> Table | None:
    """The figures of each source, where there are several in a split."""
    if all(len(statistics["sources"]) < 2 for statistics in prepared.statistics.values()):
        return None
    table = Table(box=None, pad_edge=False)
    table.add_column("source", overflow="fold")
    names = ("split", "records", "tokens", "targets", "median", "longest")
    for name in names:
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    for split, statistics in prepared.statistics.items():
        for source in statistics["sources"]:
            lengths = source["lengths"]
            figures = [f"{source[name]:,}" for name in ("records", "tokens")]
            figures += [f"{source['targets_share']:.1%}", f"{lengths['median']:,.0f}", f"{lengths['max']:,}"]
            table.add_row(plain_text(source["path"]), split, *figures)
    return table


def _stores(prepared: PreparedData) -> dict[str, DocumentStore]:
    return {"train": prepared.train} | ({"dev": prepared.dev} if prepared.dev else {})


def _counts(count: Counts) -> dict[str, str]:
    names = ("records", "kept", "dropped", "refused", "documents", "tokens", "targets")
    return {
        **{name: f"{getattr(count, name):,}" for name in names},
        "targets, share": f"{count.targets / count.tokens:.1%}",
    }


def _lengths(statistics: Mapping[str, Any]) -> dict[str, str]:
    lengths, roles, turns = statistics["lengths"], statistics["roles"], list(statistics["turns"])
    rows = {
        "mean length": f"{lengths['mean']:,.1f}",
        "median length": f"{lengths['median']:,.1f}",
        "95 % no longer than": f"{lengths['p95']:,}",
        "longest document": f"{lengths['max']:,}",
    }
    if turns:
        rows["answers per record"] = turns[0] if len(turns) == 1 else f"{turns[0]} to {turns[-1]}"
    return rows | {f"{role} messages": f"{number:,}" for role, number in roles.items()}
