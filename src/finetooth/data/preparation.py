"""Prepares the records of a config: read, understood, rendered, split and stored, every one accounted for.

What is prepared is one folder of the cache, named after everything it depends on:

    prepared-3f9c…/
      train/  dev/      stores; dev only where there is one
      ledger.jsonl      the fate of every record
      prepared.json     the settings it was made with, and its counts
      MANIFEST.json     sizes and hashes
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from finetooth.base.errors import DataError, FinetoothError, problem
from finetooth.base.files import check_folder, new_folder, sha256_of
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.data.formats.reading import Format, settle_format, unread_fields
from finetooth.data.ledger import Counts, Outcome, Split, count_ledger, render_records
from finetooth.data.masking import RenderReport
from finetooth.data.records import Record
from finetooth.data.sources import BadLine, read_records
from finetooth.data.split import dev_threshold, split_key
from finetooth.data.store import DocumentStore, StoreWriter, open_store
from finetooth.data.templates import Template, resolve_template
from finetooth.data.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from rich.console import Console

_UNREAD_FIELDS_NOTED = 100
_LIBRARIES_THAT_RENDER = ("jinja2", "tokenizers")


@dataclass(frozen=True)
class PreparedData:
    """What training and evaluation run on.

    counts:           by split, what the ledger says
    report:           what rendering changed
    unread_fields:    in how many kept records stands what, that is not read
    has_more_records: whether the training file holds more than data.max_records; those were not read
    is_reused:        whether it lay in the cache already
    """

    train: DocumentStore
    dev: DocumentStore | None
    tokenizer: Tokenizer
    template: Template
    folder: Path
    counts: dict[str, Counts]
    report: RenderReport
    unread_fields: dict[str, int]
    has_more_records: bool
    is_reused: bool

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document to be trained or evaluated."""
        return max(int(store.lengths.max()) for store in (self.train, self.dev) if store is not None)


def prepare_data(config: SFTConfig, *, console: "Console | None" = None) -> PreparedData:
    """Gives the stores that a config describes, from the cache if they are there.

    Raises DataError with every record that cannot be used (unless data.on_bad_record is drop), where a file
    cannot be read, and where nothing is left to train or to evaluate.
    """
    sources = _examine_sources(config.data)
    tokenizer = _load_tokenizer(config.model)
    template = resolve_template(
        config.data.template,
        tokenizer,
        template_args=config.data.template_args,
        system=config.data.system,
        is_prompt_response=sources[0].format != "messages",
    )
    settings = _settings(config, sources, tokenizer, template)
    folder = _cache_folder(config.data) / f"prepared-{_hash(settings)[:32]}"
    is_reused = _is_sound(folder)
    if not is_reused:
        status = console.status(f"Preparing {config.data.train} …") if console else contextlib.nullcontext()
        # Another process may prepare the same: the first to finish wins, and both use what it made.
        with (
            status,
            contextlib.suppress(FileExistsError),
            new_folder(folder, replace=folder.exists()) as partial,
        ):
            _write(partial, settings, config, sources, tokenizer, template)
    return _open(folder, tokenizer, template, is_reused=is_reused)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to be read, as it was when it was hashed."""

    path: str
    split: Split
    format: Format
    sha256: str
    state: tuple[int, int]  # size and time of the last change
    max_records: int | None

    def entries(self) -> Iterator[Record | BadLine]:
        return itertools.islice(read_records(self.path), self.max_records)

    def has_more(self) -> bool:
        if self.max_records is None:
            return False
        return any(True for _ in itertools.islice(read_records(self.path), self.max_records, None))


def _examine_sources(data: DataConfig) -> list[_Source]:
    sources = [_examine(data.train, "train", data, max_records=data.max_records)]
    if isinstance(data.dev, str):
        sources.append(_examine(data.dev, "dev", data, max_records=None))
    return sources


def _examine(path: str, split: Split, data: DataConfig, *, max_records: int | None) -> _Source:
    format = settle_format(read_records(path), path, format=data.format, fields=data.fields)
    state = _state_of(path)
    return _Source(path, split, format, sha256_of(Path(path)), state, max_records)


def _state_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _load_tokenizer(model: ModelConfig) -> Tokenizer:
    if model.tokenizer is not None:
        return load_tokenizer(model.tokenizer, place="model.tokenizer")
    assert model.path is not None
    return load_tokenizer(model.path, place="model.path")


def _settings(
    config: SFTConfig, sources: list[_Source], tokenizer: Tokenizer, template: Template
) -> dict[str, Any]:
    """Everything that what is prepared depends on."""
    data = config.data
    share = data.dev if isinstance(data.dev, float) else None
    return {
        "sources": [
            {"path": s.path, "split": s.split, "format": s.format, "sha256": s.sha256} for s in sources
        ],
        "fields": data.fields,
        "max_records": data.max_records,
        "dev_share": share,
        "seed": config.training.seed if share is not None else None,
        "tokenizer": tokenizer.fingerprint,
        "template": template.fingerprint,
        "loss_on": data.loss_on,
        "max_length": data.max_length,
        "on_bad_record": data.on_bad_record,
        "on_long_document": data.on_long_document,
        "code": _code_fingerprint(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES_THAT_RENDER},
    }


def _code_fingerprint() -> str:
    """Of the code that turns records into documents: when it changes, everything is prepared anew."""
    folder = Path(__file__).parent
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".jinja"))
    return _hash({file.relative_to(folder).as_posix(): sha256_of(file) for file in files})


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _cache_folder(data: DataConfig) -> Path:
    chosen = data.cache_dir or os.environ.get("FINETOOTH_CACHE") or "~/.cache/finetooth"
    return Path(chosen).expanduser()


def _is_sound(folder: Path) -> bool:
    return folder.is_dir() and not check_folder(folder, hashes=False)


def _open(folder: Path, tokenizer: Tokenizer, template: Template, *, is_reused: bool) -> PreparedData:
    described = json.loads((folder / "prepared.json").read_bytes())
    return PreparedData(
        train=open_store(folder / "train"),
        dev=open_store(folder / "dev") if (folder / "dev").is_dir() else None,
        tokenizer=tokenizer,
        template=template,
        folder=folder,
        counts={split: Counts(**count) for split, count in described["counts"].items()},
        report=RenderReport(**described["report"]),
        unread_fields=described["unread_fields"],
        has_more_records=described["has_more_records"],
        is_reused=is_reused,
    )


def _write(
    folder: Path,
    settings: Mapping[str, Any],
    config: SFTConfig,
    sources: list[_Source],
    tokenizer: Tokenizer,
    template: Template,
) -> None:
    with contextlib.ExitStack() as stack:
        writers: dict[Split, StoreWriter] = {}
        for split in get_args(Split) if config.data.dev is not None else ("train",):
            (folder / split).mkdir()
            writers[split] = stack.enter_context(
                StoreWriter(
                    folder / split,
                    tokenizer_fingerprint=tokenizer.fingerprint,
                    template_fingerprint=template.fingerprint,
                )
            )
        tally = _write_records(folder / "ledger.jsonl", writers, config, sources, template)
        counts = count_ledger(folder / "ledger.jsonl")
        _require_sums(counts, writers, tally.num_read, folder)
        _require_documents(counts, writers, config.data)
    described = {
        "settings": settings,
        "has_more_records": sources[0].has_more(),
        "counts": {split: dataclasses.asdict(count) for split, count in counts.items()},
        "report": dataclasses.asdict(tally.report),
        "unread_fields": dict(sorted(tally.unread_fields.items())),
    }
    (folder / "prepared.json").write_text(json.dumps(described, indent=1))


def _write_records(
    ledger: Path,
    writers: Mapping[Split, StoreWriter],
    config: SFTConfig,
    sources: list[_Source],
    template: Template,
) -> "_Tally":
    """Writes every record's documents and ledger line."""
    problems: list[str] = []
    tally = _Tally()
    with ledger.open("w", encoding="utf-8") as file:
        for source in sources:
            threshold = _split_threshold(source, config)
            entries = tally.counted(source.entries())
            for outcomes, report in render_records(entries, template, format=source.format, data=config.data):
                tally.report += report
                for outcome in outcomes:
                    split = _split_of(outcome, source, threshold, config.training.seed)
                    file.write(json.dumps(outcome.ledger_line(split)) + "\n")
                    if outcome.stops(config.data):
                        problems.append(outcome.problem())
                    if outcome.state == "kept":
                        tally.note_unread_fields(outcome, source.format, config.data)
                        for document in outcome.documents:
                            writers[split].append(document)
            _require_unchanged(source)
    if problems:
        raise DataError(problems)
    return tally


@dataclass(slots=True)
class _Tally:
    """What adds up while records pass; the number read is compared with what the ledger says."""

    num_read: int = 0
    report: RenderReport = field(default_factory=RenderReport)
    unread_fields: Counter[str] = field(default_factory=Counter[str])

    def counted(self, entries: Iterator[Record | BadLine]) -> Iterator[Record | BadLine]:
        for entry in entries:
            self.num_read += 1
            yield entry

    def note_unread_fields(self, outcome: Outcome, format: Format, data: DataConfig) -> None:
        assert isinstance(outcome.entry, Record)
        for name in set(unread_fields(outcome.entry, format=format, fields=data.fields)):
            if name in self.unread_fields or len(self.unread_fields) < _UNREAD_FIELDS_NOTED:
                self.unread_fields[name] += 1


def _require_unchanged(source: _Source) -> None:
    if _state_of(source.path) != source.state:
        fact = "the file changed while it was read"
        raise DataError(problem(source.path, fact, "run again when it is complete"))


def _split_threshold(source: _Source, config: SFTConfig) -> int:
    """The split key below which a record of this source goes to dev."""
    if not isinstance(config.data.dev, float):
        return 0
    records = (entry for entry in source.entries() if isinstance(entry, Record))
    return dev_threshold(records, config.data.dev, seed=config.training.seed)


def _split_of(outcome: Outcome, source: _Source, threshold: int, seed: int) -> Split:
    entry = outcome.entry
    is_dev = threshold and isinstance(entry, Record) and split_key(entry, seed=seed) < threshold
    return "dev" if is_dev else source.split


def _require_sums(
    counts: Mapping[str, Counts], writers: Mapping[Split, StoreWriter], num_read: int, folder: Path
) -> None:
    """Holds the ledger, read back from the disk, against the sources and the stores."""
    mistakes: list[str] = []
    if sum(count.records for count in counts.values()) != num_read:
        mistakes.append(f"{num_read} records read")
    for split, writer in writers.items():
        count = counts.get(split, Counts())
        if count.records != count.kept + count.dropped + count.refused:
            mistakes.append(f"{count.records} records of {split} in other states")
        for name in ("documents", "tokens", "targets"):
            stored = getattr(writer, f"num_{name}")
            if stored != getattr(count, name):
                mistakes.append(f"{stored} {name} stored for {split}")
    if mistakes:
        fact = f"it does not add up with {', '.join(mistakes)}"
        raise FinetoothError(problem(folder / "ledger.jsonl", fact, "report this mistake of finetooth"))


def _require_documents(
    counts: Mapping[str, Counts], writers: Mapping[Split, StoreWriter], data: DataConfig
) -> None:
    problems: list[str] = []
    for split, writer in writers.items():
        if writer.num_documents:
            continue
        place = data.dev if split == "dev" and isinstance(data.dev, str) else data.train
        count = counts.get(split, Counts())
        if count.records:
            reason = max(count.reasons, key=lambda reason: count.reasons[reason])
            fact = f"none of {count.records} records can be used for {split} (most often: {reason})"
            problems.append(problem(place, fact, "correct the records or raise data.max_length"))
        else:
            remedy = "add different records, or set data.dev to a file or to null"
            problems.append(problem(place, f"no record is left for {split}", remedy))
    if problems:
        raise DataError(problems)
