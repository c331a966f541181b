"""The verb `export`: the policy of a finished run as a folder that other programs load directly."""

from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from finetooth.base.errors import ConfigError, problem
from finetooth.base.terminal import print_line
from finetooth.data.templates.template import resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.reporting.model_card import model_card
from finetooth.reporting.run_facts import read_facts
from finetooth.reporting.serving import Form
from finetooth.training.exports import open_run, write_folder

DType = Literal["fp32", "bf16", "fp16"]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def export(
    target: str,
    *,
    to: Form = "folder",
    out: Path | None = None,
    dtype: DType = "fp32",
    shard_size: str = "5GB",
    console: Console | None = None,
) -> dict[str, Any]:
    """Writes the policy of a run; returns where it stands and how large it is.

    target:     a run directory; out: the folder to write, by default export/ of the run directory
    shard_size: how much a file of parameters holds at most: 500MB, 5GB
    Raises ConfigError for a run that has not finished, or where something stands at `out` already.
    """
    console = console or Console(quiet=True)
    shard_bytes = _bytes_of(shard_size)
    run = open_run(target)
    out = out or run.folder / "export" / to
    if out.exists():
        raise ConfigError(problem("--out", f"{out} exists", "name a new folder, or remove it"))
    facts = read_facts(run.folder, run.config)
    template = resolve_template("own", load_tokenizer(str(run.final)))
    card = model_card(facts, template, form=to, dtype=dtype)
    write_folder(run, out, dtype=dtype, shard_bytes=shard_bytes, card=card)
    num_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print_line(console, f"{to}: {out}, {num_bytes / 1e6:,.1f} MB, {dtype}")
    return {"to": to, "out": str(out), "dtype": dtype, "num_bytes": num_bytes}


def _bytes_of(size: str) -> int:
    """How many bytes a size names.

    >>> _bytes_of("5GB"), _bytes_of("1.5 mb")
    (5000000000, 1500000)
    """
    unit = size.strip().upper()[-2:]
    try:
        num_bytes = int(float(size.strip()[:-2]) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        num_bytes = 0
    if num_bytes <= 0:
        raise ConfigError(problem("--shard-size", f"{size!r} is no size", "write for instance 500MB or 5GB"))
    return num_bytes
