"""Writes some settings as the run.yaml of a person: by section, each with a comment behind it."""

from collections.abc import Iterable, Mapping

from finetooth.config.describe import write_value
from finetooth.config.keys import SECTIONS

_WIDEST = 36  # columns of a setting before its comment; longer ones have it right behind them


def commented_yaml(settings: Mapping[str, tuple[object, str]], *, heading: Iterable[str] = ()) -> str:
    """Settings by dotted key, each a value and a comment, as YAML text that `load_config` reads.

    heading: lines of comment at the top

    >>> print(commented_yaml({"data.train": ("a.jsonl", "999 records"), "output_dir": ("run", "")}), end="")
    data:
      train: a.jsonl  # 999 records
    output_dir: run
    """
    written = {
        key: f"{'  ' if '.' in key else ''}{key.rpartition('.')[2]}: {_write(value)}"
        for key, (value, _) in settings.items()
    }
    width = max((len(text) for text in written.values() if len(text) <= _WIDEST), default=0)
    lines = [f"# {_one_line(line)}" for line in heading]
    for section in (*SECTIONS, ""):
        keys = [key for key in settings if key.rpartition(".")[0] == section]
        lines += [f"{section}:"] if section and keys else []
        for key in keys:
            comment = _one_line(settings[key][1])
            lines.append(f"{written[key]:<{width}}  # {comment}" if comment else written[key])
    return "\n".join(lines) + "\n"


def _write(value: object) -> str:
    """As `write_value`, small numbers as people write them: 2e-5."""
    if isinstance(value, float) and 0 < abs(value) < 1e-2:
        digits, _, power = f"{value:e}".partition("e")
        short = f"{float(digits):g}e{int(power)}"
        return short if float(short) == value else write_value(value)
    return write_value(value)


def _one_line(comment: str) -> str:
    """A comment that cannot end early, whatever a file name holds."""
    return " ".join("".join(c if c.isprintable() else " " for c in comment).split())
