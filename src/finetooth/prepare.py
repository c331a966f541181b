"""`finetooth prepare`: records become documents, every one accounted for; shows the sums and a sample."""

import dataclasses
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetooth.base.terminal import print_text
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import Document
from finetooth.data.store import DocumentStore
from finetooth.reporting.mask_view import mask_view

_SAMPLED_DOCUMENTS = 100
_SAMPLE_CHARACTERS = 3000
_REASONS_SHOWN = 5


def prepare(config: SFTConfig, *, console: Console) -> dict[str, Any]:
    """Prepares a config's data and prints what became of it; returns the same as one JSON object.

    Raises DataError and ConfigError as `prepare_data` does.
    """
    prepared = prepare_data(config, console=console)
    stores = {"train": prepared.train} | ({"dev": prepared.dev} if prepared.dev else {})
    how = "already prepared" if prepared.is_reused else "prepared"
    print_text(console, f"{config.data.train}: {how}, template {prepared.template.name}")
    print_text(console, f"ledger and stores: {prepared.folder}\n")
    console.print(_table(prepared, stores))
    for line in _remarks(prepared, config):
        print_text(console, line)
    _print_sample(prepared, console)
    return {
        "folder": str(prepared.folder),
        "ledger": str(prepared.folder / "ledger.jsonl"),
        "is_reused": prepared.is_reused,
        "template": prepared.template.name,
        "unread_fields": prepared.unread_fields,
        "has_more_records": prepared.has_more_records,
        **dataclasses.asdict(prepared.report),
        "splits": {
            split: dataclasses.asdict(prepared.counts[split])
            | {"longest": int(store.lengths.max()), "fingerprint": store.fingerprint}
            for split, store in stores.items()
        },
    }


def _table(prepared: PreparedData, stores: dict[str, DocumentStore]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    counts = [prepared.counts[split] for split in stores]
    for split in stores:
        table.add_column(split, justify="right")
    for name in ("records", "kept", "dropped", "refused", "documents", "tokens", "targets"):
        table.add_row(name, *(f"{getattr(count, name):,}" for count in counts))
    table.add_row("targets, share", *(f"{count.targets / count.tokens:.1%}" for count in counts))
    table.add_row("longest document", *(f"{int(store.lengths.max()):,}" for store in stores.values()))
    return table


def _remarks(prepared: PreparedData, config: SFTConfig) -> list[str]:
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


def _print_sample(prepared: PreparedData, console: Console) -> None:
    document = _short_document(prepared.train)
    view = mask_view(document, prepared.tokenizer)
    if len(view) > _SAMPLE_CHARACTERS:
        view = Text.assemble(view[:_SAMPLE_CHARACTERS], " …")
    print_text(console, f"\nThe document of {document.origin}; targets stand ⟦in brackets⟧:\n")
    console.print(view, soft_wrap=True)


def _short_document(store: DocumentStore) -> Document:
    """The shortest among the first ones, so that all of it can be looked at."""
    return store.document(int(store.lengths[:_SAMPLED_DOCUMENTS].argmin()))
