"""Records and steps on a terminal: headings, sizes, and documents token by token."""

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from finetooth.base.terminal import make_visible, print_line
from finetooth.data.records import Document
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.reporting.mask_view import mask_view, token_list
from finetooth.reporting.samples import Sample
from finetooth.reporting.step_report import RowReport, StepReport


@dataclass(frozen=True, slots=True)
class TerminalView:
    """Where things are shown, and how.

    ids:            a line per token with its id, instead of text with its targets in brackets
    max_characters: cuts off longer texts, and says so
    """

    console: Console
    tokenizer: Tokenizer
    ids: bool = False
    max_characters: int | None = None

    def record(self, sample: Sample) -> None:
        """A record: its fate, its documents, or what stands in it and why it has none."""
        record = sample.record
        state = () if record.state in sample.kinds else (record.state,)
        words = ", ".join((*sample.kinds, record.entry.line["split"], *state))
        _show_heading(self.console, f"record {record.entry.number:,}, {record.entry.origin} ({words})")
        if record.reason:
            print_line(self.console, "; ".join(filter(None, (record.reason, record.remedy))))
        for place, document in enumerate(record.documents, start=1):
            which = f"document {place} of {len(record.documents)}: " if len(record.documents) > 1 else ""
            print_line(self.console, f"{which}{_sizes(document)}")
            self.console.print()
            self._document(document)
        if record.text:
            self.console.print()
            self._print(Text(make_visible(record.text, keep="\n")))

    def row(self, report: StepReport, number: int) -> None:
        """One row of a step, with the tokens of its documents; `number` counts from 1."""
        _show_sums(report, self.console)
        row = report.rows[number - 1]
        _show_heading(self.console, _row_heading(number, row))
        for document in row.documents:
            self.console.print()
            print_line(self.console, f"{document.origin}: {_sizes(document)}")
            self.console.print()
            self._document(document)

    def _document(self, document: Document) -> None:
        # No more tokens are decoded than there are characters to be shown.
        end, length = self.max_characters, len(document.token_ids)
        if self.ids:
            text = Text("\n").join(token_list(document, self.tokenizer, end=end))
        else:
            text = mask_view(document, self.tokenizer, end=end)
        self._print(text, is_cut=end is not None and length > end)

    def _print(self, text: Text, *, is_cut: bool = False) -> None:
        if is_cut or (self.max_characters is not None and len(text) > self.max_characters):
            text = Text.assemble(text[: self.max_characters], " …")
        self.console.print(text, soft_wrap=True, end="" if text.plain.endswith("\n") else "\n")


def show_step(report: StepReport, console: Console) -> None:
    """A step: its sums, and the documents in each row of the rank."""
    _show_sums(report, console)
    for number, row in enumerate(report.rows, start=1):
        _show_heading(console, _row_heading(number, row))
        for document in row.documents:
            print_line(console, f"  {document.origin}: {_sizes(document)}")


def _show_sums(report: StepReport, console: Console) -> None:
    step = report.step
    print_line(
        console,
        f"step {step.number:,} of {report.num_steps:,}, epoch {step.epoch + 1}: "
        f"{_counted(len(step.documents), 'document')}, {step.num_tokens:,} tokens, "
        f"{step.num_targets:,} targets, total loss weight {step.total_loss_weight:,g}",
    )
    rows = _counted(len(report.rows), "row")
    print_line(console, f"rank {report.rank} of {report.world_size}: {rows}, {report.fill:.1%} full")


def _show_heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(make_visible(text), "bold"), soft_wrap=True)


def _row_heading(number: int, row: RowReport) -> str:
    documents = _counted(len(row.documents), "document")
    counts = f"{documents}, {row.num_tokens:,} tokens, {row.num_targets:,} targets"
    return f"row {number}: {counts}, {row.fill:.1%} full"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _sizes(document: Document) -> str:
    total = float(document.loss_weights.sum(dtype="float64"))
    weight = "" if total == document.num_targets else f", loss weight {total:,g}"
    return f"{len(document.token_ids):,} tokens, {document.num_targets:,} targets{weight}"
