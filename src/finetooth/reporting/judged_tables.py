"""What was measured of policies, as tables for a terminal: one policy, or several side by side.

A figure is a number, or a table of numbers by source (`dev_loss_by_source`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from finetooth.base.terminal import plain_text

Figures = Mapping[str, Any]

_NAME_WIDTH = 24
_COLUMN_WIDTH = 11  # of "step-000200"
_FRAME = 3  # a line between columns, with a space on either side
_APART = ("target", "records")


def figures_table(figures: Figures) -> Table:
    """The figures of one policy, a line each."""
    table = Table(show_header=False)
    for name, value in _rows(figures):
        table.add_row(plain_text(name), plain_text(_cell(value)))
    return table


def side_by_side(measured: Sequence[Figures], *, width: int) -> Iterator[Table]:
    """The figures of several policies, a column each; more tables where they need more than the width."""
    at_once = max(1, (width - _NAME_WIDTH - _FRAME) // (_COLUMN_WIDTH + _FRAME))
    for begin in range(0, len(measured), at_once):
        shown = measured[begin : begin + at_once]
        table = Table("")
        for figures in shown:
            table.add_column(
                plain_text(folded_name(figures["target"])),
                justify="right",
                min_width=_COLUMN_WIDTH,
                overflow="fold",
            )
        by_name = [dict(_rows(figures, without=_APART)) for figures in shown]
        for name in dict.fromkeys(name for rows in by_name for name in rows):
            cells = [plain_text(_cell(rows[name])) if name in rows else "–" for rows in by_name]
            table.add_row(plain_text(name), *cells)
        yield table


def records_table(records: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Records with their losses."""
    table = Table(title=plain_text(title))
    table.add_column("record", overflow="fold")
    for name in ("loss", "targets"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(plain_text(record["origin"]), f"{record['loss']:.4f}", f"{record['num_targets']:,}")
    return table


def _rows(figures: Figures, *, without: Sequence[str] = ("records",)) -> Iterator[tuple[str, Any]]:
    """Name and value of each line; of a table by source, a line for each source."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            for source, part in value.items():
                yield f"{name.removesuffix('_by_source')}, {source}", part
        elif name not in without:
            yield name, value


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def folded_name(name: str) -> str:
    """A path broken into lines behind its slashes, as few as hold it.

    >>> folded_name("runs/a/checkpoints/step-000200")
    'runs/a/\\ncheckpoints/\\nstep-000200'
    """
    lines = [""]
    for part in name.rstrip("/").split("/"):
        piece = part + "/"
        if lines[-1] and len(lines[-1]) + len(part) > _COLUMN_WIDTH:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines).removesuffix("/")
