"""What became of a config's records, as a table, as sentences and as data."""

import dataclasses
from collections import Counter
from typing import Any

from rich.table import Table

from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Counts
from finetooth.data.preparation import PreparedData
from finetooth.data.store import DocumentStore

_REASONS_SHOWN = 5


def summary_table(prepared: PreparedData) -> Table:
    """The counts of each split, one below the other."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    splits = summary_counts(prepared)
    for split in splits:
        table.add_column(split, justify="right")
    for name in splits["train"]:
        table.add_row(name, *(counts[name] for counts in splits.values()))
    return table


def summary_counts(prepared: PreparedData) -> dict[str, dict[str, str]]:
    """By split, name and value of each count, in words for people."""
    return {split: _counts(prepared.counts[split], store) for split, store in _stores(prepared).items()}


def summary_remarks(prepared: PreparedData, config: SFTConfig) -> list[str]:
    """Sentences about what was not kept, not read or changed."""
    reasons = Counter[str]()
    for count in prepared.counts.values():
        reasons.update(count.reasons)
    remarks = [f"{number:,} × {reason}" for reason, number in reasons.most_common(_REASONS_SHOWN)]
    if len(reasons) > _REASONS_SHOWN:
        remarks.append(f"{len(reasons) - _REASONS_SHOWN} other reasons stand in the ledger")
    for name, number in prepared.unread_fields.items():
        remarks.append(f"not read: {name!r}, in {number:,} records")
    if prepared.has_more_records:
        remarks.append(f"records beyond data.max_records ({config.data.max_records}) were not read")
    if prepared.report.num_trimmed:
        remarks.append(f"{prepared.report.num_trimmed:,} characters of whitespace cut off by the template")
    if prepared.report.num_seams:
        remarks.append(
            f"{prepared.report.num_seams:,} documents in which the prompt was encoded apart, as in use"
        )
    return remarks


def summary_data(prepared: PreparedData) -> dict[str, Any]:
    """The same as JSON holds it."""
    return {
        "folder": str(prepared.folder),
        "ledger": str(prepared.folder / "ledger.jsonl"),
        "is_reused": prepared.is_reused,
        "template": prepared.template_name,
        "unread_fields": prepared.unread_fields,
        "has_more_records": prepared.has_more_records,
        **dataclasses.asdict(prepared.report),
        "splits": {
            split: dataclasses.asdict(prepared.counts[split])
            | {"longest": int(store.lengths.max()), "fingerprint": store.fingerprint}
            for split, store in _stores(prepared).items()
        },
    }


def _stores(prepared: PreparedData) -> dict[str, DocumentStore]:
    return {"train": prepared.train} | ({"dev": prepared.dev} if prepared.dev else {})


def _counts(count: Counts, store: DocumentStore) -> dict[str, str]:
    names = ("records", "kept", "dropped", "refused", "documents", "tokens", "targets")
    return {
        **{name: f"{getattr(count, name):,}" for name in names},
        "targets, share": f"{count.targets / count.tokens:.1%}",
        "longest document": f"{int(store.lengths.max()):,}",
    }
