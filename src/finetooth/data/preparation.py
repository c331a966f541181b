"""Prepares the records of a config: read, understood, rendered, split and stored, every one accounted for.

What is prepared is one folder of the cache, named after everything it depends on:

    prepared-3f9c…/
      train/  dev/      stores; dev only where there is one
      ledger.jsonl      the fate of every record
      prepared.json     the settings it was made with, its counts and statistics
      MANIFEST.json     sizes and hashes

The name is known before the tokenizer is built; what lies in the cache is opened at once.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetooth.base.files import sha256_of
from finetooth.base.terminal import plain_text
from finetooth.config.schema import ModelConfig, SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.accounting import write_prepared
from finetooth.data.cache import cache_folder, code_fingerprint, hash_of, is_sound, make_once
from finetooth.data.formats.reading import is_prompt_response
from finetooth.data.ledger import Counts, Split
from finetooth.data.masks.masking import RenderReport
from finetooth.data.pieces import Piece, pieces_of
from finetooth.data.records import DocumentSource
from finetooth.data.sources.inputs import Source, examine_sources
from finetooth.data.store import DocumentStore, open_store
from finetooth.data.subset import Subset
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.files import hash_tokenizer_files
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES_THAT_RENDER = ("jinja2", "tokenizers")
_SAMPLED_DOCUMENTS = 100
_SAMPLE_TOKENS = 1000
# What is prepared does not depend on these, or depends on what they name, which is hashed.
_NOT_IN_THE_NAME = ("train", "dev", "cache_dir", "format", "fields", "max_records")


@dataclass(frozen=True)
class Sample:
    """A short document to be looked at, or its beginning."""

    origin: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PreparedData:
    """What training and evaluation run on.

    train:            the documents of train, each once
    train_documents:  the same, each as often as the settings of its source repeat it
    template_name:    the name of the template, which is loaded when it is asked for
    counts:           by split, what the ledger says
    statistics:       by split, the figures of what was kept, over all and under "sources" for each
    sample:           the shortest of the first documents of train
    report:           what rendering changed in the records that were kept
    num_near_duplicates: how many records were kept that almost repeat an earlier one, if that is reported
    unread_fields:    in how many kept records stands what, that is not read
    has_more_records: whether a training source holds more than max_records; those were not read
    is_reused:        whether it lay in the cache already
    """

    train: DocumentStore
    train_documents: DocumentSource
    dev: DocumentStore | None
    folder: Path
    template_name: str
    counts: dict[str, Counts]
    statistics: dict[str, Any]
    sample: Sample
    report: RenderReport
    num_near_duplicates: int
    unread_fields: dict[str, int]
    has_more_records: bool
    is_reused: bool
    loader: "TemplateLoader"

    @property
    def template(self) -> Template:
        """The template with which the records were rendered, at the time of then."""
        return self.loader.template

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer with which they were encoded."""
        return self.loader.template.tokenizer

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document to be trained or evaluated."""
        return max(int(store.lengths.max()) for store in (self.train, self.dev) if store is not None)

    def documents_by_source(self, split: Split) -> dict[str, np.ndarray]:
        """By the path of a source, as the settings name it: int64, its documents in the split's store."""
        numbers: dict[str, list[np.ndarray]] = {}
        begin: int = 0
        for source in self.statistics[split]["sources"]:
            end = begin + int(source["documents"])
            numbers.setdefault(source["path"], []).append(np.arange(begin, end))
            begin = end
        return {path: np.concatenate(parts) for path, parts in numbers.items()}


def prepare_data(
    config: SFTConfig, *, console: "Console | None" = None, now: datetime | None = None
) -> PreparedData:
    """Gives the stores that a config describes, from the cache if they are there.

    now: the time that the template tells, where a run has settled it; default: that at which the records in
    the cache were prepared, else the present.
    Raises DataError with every record that must not be passed over (unless the settings drop it), where a
    file cannot be read, and where nothing is left to train or to evaluate.
    """
    sources = examine_sources(config.data)
    settings = _settings(config, sources)
    folder = cache_folder(config.data) / f"prepared-{hash_of(settings)[:32]}"
    if now is not None and is_sound(folder) and _time_of(folder) != now:
        folder = folder.with_name(f"prepared-{hash_of(settings | {'now': now.isoformat()})[:32]}")
    now = now or datetime.now().replace(microsecond=0)
    loader = TemplateLoader(config, all(is_prompt_response(source.format) for source in sources), now)

    def make(partial: Path) -> None:
        described = write_prepared(partial, config, sources, loader.template)
        described |= {"settings": settings, "template": loader.template.name, "now": loader.now.isoformat()}
        described["sample"] = dataclasses.asdict(_sample(open_store(partial / "train"), loader.template))
        (partial / "prepared.json").write_text(json.dumps(described, indent=1))

    shown = plain_text(f"Preparing {describe_sources(config.data.train)} …")
    with console.status(shown) if console else contextlib.nullcontext():
        is_made_here = make_once(folder, make)
    return _open(folder, sources, loader, is_reused=not is_made_here)


def _time_of(folder: Path) -> datetime:
    """The time that the template told when a folder was prepared."""
    return datetime.fromisoformat(json.loads((folder / "prepared.json").read_bytes())["now"])


class TemplateLoader:
    """Loads a config's template, with its tokenizer, when it is first asked for; it tells the time `now`."""

    def __init__(self, config: SFTConfig, is_prompt_response: bool, now: datetime):
        self.now = now
        self._config = config
        self._is_prompt_response = is_prompt_response

    @functools.cached_property
    def template(self) -> Template:
        """Raises ConfigError where there is none, or it cannot be used with the tokenizer."""
        data = self._config.data
        name, place = _tokenizer_name(self._config.model)
        return resolve_template(
            data.template,
            load_tokenizer(name, place=place),
            template_args=data.template_args,
            system=data.system,
            allow_tokens=data.allow_tokens,
            is_prompt_response=self._is_prompt_response,
            now=self.now,
        )

    def at(self, now: datetime) -> "TemplateLoader":
        """One for another time."""
        return self if now == self.now else TemplateLoader(self._config, self._is_prompt_response, now)


def _sample(train: DocumentStore, template: Template) -> "Sample":
    document = train.document(int(train.lengths[:_SAMPLED_DOCUMENTS].argmin()))
    pieces = pieces_of(document, template.tokenizer, end=_SAMPLE_TOKENS)
    return Sample(str(document.origin), tuple(pieces))


def _tokenizer_name(model: ModelConfig) -> tuple[str, str]:
    """The folder or hub name of the tokenizer, and the setting that names it."""
    if model.tokenizer is not None:
        return model.tokenizer, "model.tokenizer"
    assert model.path is not None
    return model.path, "model.path"


def _settings(config: SFTConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """Everything that what is prepared depends on."""
    data = config.data
    share = data.dev if isinstance(data.dev, float) else None
    chosen = {name: value for name, value in vars(data).items() if name not in _NOT_IN_THE_NAME}
    is_file = data.template.endswith(".jinja") and Path(data.template).expanduser().is_file()
    return {
        **chosen,
        "sources": [source.describe() for source in sources],
        "dev_share": share,
        "has_dev": data.dev is not None,
        "seed": config.training.seed if share is not None else None,
        "group_by": data.group_by if share is not None else None,
        "tokenizer": hash_tokenizer_files(*_tokenizer_name(config.model)),
        "template_file": sha256_of(Path(data.template).expanduser()) if is_file else None,
        "code": code_fingerprint(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES_THAT_RENDER},
    }


def _open(
    folder: Path, sources: Sequence[Source], loader: TemplateLoader, *, is_reused: bool
) -> PreparedData:
    described = json.loads((folder / "prepared.json").read_bytes())
    train = open_store(folder / "train")
    return PreparedData(
        train=train,
        train_documents=_repeated(train, sources, described["train_documents"]),
        dev=open_store(folder / "dev") if (folder / "dev").is_dir() else None,
        folder=folder,
        template_name=described["template"],
        counts={split: Counts(**count) for split, count in described["counts"].items()},
        statistics=described["statistics"],
        sample=Sample(
            described["sample"]["origin"],
            tuple(Piece(**piece) for piece in described["sample"]["pieces"]),
        ),
        report=RenderReport(**described["report"]),
        num_near_duplicates=described["num_near_duplicates"],
        unread_fields=described["unread_fields"],
        has_more_records=described["has_more_records"],
        is_reused=is_reused,
        loader=loader.at(datetime.fromisoformat(described["now"])),
    )


def _repeated(
    train: DocumentStore, sources: Sequence[Source], ranges: Sequence[tuple[int, int]]
) -> DocumentSource:
    """Each document as often as its source is repeated: first all of them, then those of a second pass, …"""
    most = max(source.settings.repeat for source in sources)
    if most == 1:
        return train
    passes = [
        np.arange(begin, end)
        for number in range(most)
        for source, (begin, end) in zip(sources, ranges, strict=True)
        if source.settings.repeat > number
    ]
    return Subset(train, np.concatenate(passes))
