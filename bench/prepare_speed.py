"""Measures the speed of preparing data beside the tokenizer's bare batch call on the same text.

python bench/prepare_speed.py RUN.yaml --out speed.json

Loading libraries and building the tokenizer are not counted. Everything else is: reading, understanding,
rendering, proving, encoding, looking for doubled records, writing and checking.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetooth import load_config
from finetooth.base.errors import FinetoothError
from finetooth.base.files import new_folder, write_atomically
from finetooth.config.schema import SFTConfig
from finetooth.data.accounting import write_prepared
from finetooth.data.formats.reading import is_prompt_response
from finetooth.data.preparation import TemplateLoader
from finetooth.data.sources.inputs import examine_sources
from finetooth.data.store import open_store
from finetooth.data.templates.template import Template

PREPARE, BARE = "finetooth prepare", "bare batch call"


def main(arguments: Sequence[str] | None = None) -> None:
    """Does both kinds of work in turn, prints and writes how long each took."""
    options = _parse(arguments)
    try:
        config = load_config(options.run_file)
        sources = examine_sources(config.data)
        are_pairs = all(is_prompt_response(source.format) for source in sources)
        template = TemplateLoader(config, are_pairs, datetime.now()).template
        with tempfile.TemporaryDirectory() as folder:
            _prepare(Path(folder, "first"), config, template)  # builds the encoder
            texts, num_tokens = _texts(Path(folder, "first"), template)
            seconds = _time(Path(folder), config, template, texts, repeats=options.repeats)
    except FinetoothError as error:
        raise SystemExit(str(error)) from None
    result = {
        "processors": os.cpu_count(),
        "versions": {name: version(name) for name in ("finetooth", "tokenizers", "jinja2")},
        "num_documents": len(texts),
        "num_tokens": num_tokens,
        "seconds": {name: sorted(each) for name, each in seconds.items()},
        "ratio": statistics.median(seconds[PREPARE]) / statistics.median(seconds[BARE]),
    }
    Console().print(_table(result))
    if options.out:
        write_atomically(Path(options.out), (json.dumps(result, indent=1) + "\n").encode())


def _prepare(folder: Path, config: SFTConfig, template: Template) -> None:
    with new_folder(folder) as partial:
        write_prepared(partial, config, examine_sources(config.data), template)


def _texts(folder: Path, template: Template) -> tuple[list[str], int]:
    """The text of every document; SystemExit where encoding it does not give about as many tokens."""
    stores = [open_store(folder / split) for split in ("train", "dev") if (folder / split).is_dir()]
    decode = template.tokenizer.decode
    texts = [decode(s.document(n).token_ids.tolist()) for s in stores for n in range(s.num_documents)]
    num_tokens = sum(store.num_tokens for store in stores)
    encoded = template.tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    num_encoded = sum(map(len, encoded))
    if abs(num_encoded - num_tokens) > num_tokens / 100:
        raise SystemExit(
            f"{num_tokens:,} tokens prepared, {num_encoded:,} encoded: this is not the same work"
        )
    return texts, num_tokens


def _time(
    folder: Path, config: SFTConfig, template: Template, texts: list[str], *, repeats: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {PREPARE: [], BARE: []}
    backend = template.tokenizer.backend
    for repeat in range(repeats):
        arms: dict[str, Callable[[], Any]] = {
            PREPARE: lambda number=repeat: _prepare(folder / f"{number}", config, template),
            BARE: lambda: backend.encode_batch_fast(texts, add_special_tokens=False),
        }
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['num_tokens']:,} tokens in {result['num_documents']:,} documents"
    caption = f"seconds: median (least - most); {result['ratio']:.2f} times the bare call"
    table = Table("", "seconds", title=title, caption=caption)
    for name, each in result["seconds"].items():
        table.add_row(name, f"{statistics.median(each):.2f} ({each[0]:.2f} - {each[-1]:.2f})")
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("run_file", type=Path, help="a run.yaml, whose records are prepared")
    parser.add_argument("--repeats", default=5, type=int, help="how often both are timed, in turn")
    parser.add_argument("--out", help="a file for the result as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
