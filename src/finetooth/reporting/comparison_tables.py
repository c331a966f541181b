"""Two models side by side, as tables for a terminal: their answers, and what has become of each record."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from finetooth.base.terminal import plain_text
from finetooth.reporting.judged_tables import folded_name
from finetooth.reporting.numerals import in_words

if TYPE_CHECKING:
    from finetooth.evaluation.record_changes import RecordChange, RecordChanges, Turned
    from finetooth.evaluation.speaker import Reply

Names = tuple[str, str]


def answers_table(
    names: Names,
    prompts: Sequence[str],
    first: Sequence["Reply"],
    second: Sequence["Reply"],
    *,
    moved: Sequence[float | None] | None = None,
    mean: float | None = None,
) -> Table:
    """The same prompts with both answers, and how far the second model has moved from each of the first's.

    moved: nats per token, None where there is no figure; mean: that of all.
    """
    table = Table(*_columns("prompt", *names), show_lines=True)
    rows = [
        [plain_text(prompt), _cell(a), _cell(b)] for prompt, a, b in zip(prompts, first, second, strict=True)
    ]
    if moved is not None:
        table.add_column("moved", justify="right", no_wrap=True)
        rows = [[*row, plain_text(_figure(each))] for row, each in zip(rows, moved, strict=True)]
        table.caption = (
            f"moved: nats per token, mean {_figure(mean)}; 0 where the second says the same as surely"
        )
        table.caption_justify = "left"
    for row in rows:
        table.add_row(*row)
    return table


def changes_tables(names: Names, changes: "RecordChanges") -> Iterator[Table]:
    """How many records got better and worse, and those that did most."""
    counts = Table(title=in_words(changes.num_records, "dev record"), show_header=False)
    counts.add_row("loss over all", f"{changes.first_loss:.4f} → {changes.second_loss:.4f}")
    same = changes.num_records - changes.num_better - changes.num_worse
    for name, number in (("better", changes.num_better), ("worse", changes.num_worse), ("the same", same)):
        counts.add_row(name, f"{number:,}")
    yield counts
    for what, records in (("better", changes.better), ("worse", changes.worse)):
        if records:
            yield _records_table(names, records, f"got most {what}")


def turned_table(turned: "Turned", *, most: int) -> Table:
    """Whose answers turned right and wrong; `most` of either kind are named."""
    table = Table("answers", title="answers of the dev records")
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("records", overflow="fold")
    for what, origins in (("turned right", turned.right), ("turned wrong", turned.wrong)):
        hidden = len(origins) - most
        shown = ", ".join(origins[:most]) + (f" and {hidden:,} more" if hidden > 0 else "")
        table.add_row(what, f"{len(origins):,}", plain_text(shown))
    table.add_row("right under both", f"{turned.num_right_twice:,}", "")
    table.add_row("wrong under both", f"{turned.num_wrong_twice:,}", "")
    return table


def _records_table(names: Names, records: Sequence["RecordChange"], title: str) -> Table:
    table = Table(title=title)
    table.add_column("record", overflow="fold")
    for name in names:
        table.add_column(plain_text(folded_name(name)), justify="right", overflow="fold", min_width=7)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("targets", justify="right", no_wrap=True)
    for record in records:
        losses = (f"{record.first:.4f}", f"{record.second:.4f}", f"{record.growth:+.4f}")
        table.add_row(plain_text(record.origin), *losses, f"{record.num_targets:,}")
    return table


def _columns(*names: str) -> list[Column]:
    """Columns whose text is broken, never cut: an ellipsis is the mark of an answer that did not stop."""
    return [Column(plain_text(folded_name(name)), overflow="fold") for name in names]


def _cell(reply: "Reply") -> Text:
    return plain_text(reply.text + ("" if reply.stopped else " …"))


def _figure(moved: float | None) -> str:
    return "–" if moved is None else f"{moved:.3f}"
