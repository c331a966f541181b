"""`finetooth prepare`: records become documents, every one accounted for; shows the sums and a sample."""

from typing import Any

from rich.console import Console
from rich.text import Text

from finetooth.base.terminal import print_line
from finetooth.config.schema import SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.token_files.writing import Export, require_new, write_token_files
from finetooth.reporting.mask_view import pieces_view
from finetooth.reporting.summary import show_summary, summary_data

_SAMPLE_CHARACTERS = 3000


def prepare(config: SFTConfig, *, export: Export | None = None, console: Console) -> dict[str, Any]:
    """Prepares a config's data and prints what became of it; returns the same as one JSON object.

    export: what to write for other systems besides
    Raises DataError and ConfigError as `prepare_data` and `write_token_files` do.
    """
    if export is not None:
        require_new(export.folder)
    prepared = prepare_data(config, console=console)
    how = "already prepared" if prepared.is_reused else "prepared"
    print_line(console, f"{describe_sources(config.data.train)}: {how}, template {prepared.template_name}")
    print_line(console, f"ledger and stores: {prepared.folder}")
    console.print()
    show_summary(prepared, config, console)
    _print_sample(prepared, console)
    written = {} if export is None else {"written": _export(prepared, config, export, console)}
    return summary_data(prepared) | written


def _export(prepared: PreparedData, config: SFTConfig, export: Export, console: Console) -> dict[str, Any]:
    splits = {"train": prepared.train_documents} | ({"dev": prepared.dev} if prepared.dev else {})
    single_turn = config.data.single_turn
    meta = write_token_files(export, splits, template=prepared.template, single_turn=single_turn)
    console.print()
    for split in ("train", "val"):
        counts = meta[split]
        fact = f"{counts['num_examples']:,} documents, {counts['total_tokens']:,} tokens"
        print_line(console, f"written for {split}: {fact}, as {export.layout} in {export.folder}")
    return {"folder": str(export.folder), "layout": export.layout, **meta}


def _print_sample(prepared: PreparedData, console: Console) -> None:
    view = pieces_view(prepared.sample.pieces)
    if len(view) > _SAMPLE_CHARACTERS:
        view = Text.assemble(view[:_SAMPLE_CHARACTERS], " …")
    console.print()
    print_line(console, f"The document of {prepared.sample.origin}; targets stand ⟦in brackets⟧:")
    console.print()
    console.print(view, soft_wrap=True)
