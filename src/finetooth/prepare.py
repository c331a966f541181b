"""`finetooth prepare`: records become documents, every one accounted for; shows the sums and a sample."""

from typing import Any

from rich.console import Console
from rich.text import Text

from finetooth.base.terminal import print_text
from finetooth.config.schema import SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import Document
from finetooth.data.store import DocumentStore
from finetooth.reporting.mask_view import mask_view
from finetooth.reporting.summary import summary_data, summary_remarks, summary_table

_SAMPLED_DOCUMENTS = 100
_SAMPLE_CHARACTERS = 3000


def prepare(config: SFTConfig, *, console: Console) -> dict[str, Any]:
    """Prepares a config's data and prints what became of it; returns the same as one JSON object.

    Raises DataError and ConfigError as `prepare_data` does.
    """
    prepared = prepare_data(config, console=console)
    how = "already prepared" if prepared.is_reused else "prepared"
    print_text(console, f"{describe_sources(config.data.train)}: {how}, template {prepared.template_name}")
    print_text(console, f"ledger and stores: {prepared.folder}\n")
    console.print(summary_table(prepared))
    for line in summary_remarks(prepared, config):
        print_text(console, line)
    _print_sample(prepared, console)
    return summary_data(prepared)


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
