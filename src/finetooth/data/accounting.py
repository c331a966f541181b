"""Writes a folder of prepared data: every record rendered, judged and noted, and all sums compared."""

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetooth.base.errors import DataError, FinetoothError, problem
from finetooth.config.schema import DataConfig, SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.formats.reading import BadRecord, to_conversation
from finetooth.data.ledger import (
    SPLITS,
    Counts,
    Entry,
    Item,
    Outcome,
    Split,
    count_ledger,
    encode_line,
)
from finetooth.data.masks.masking import RenderReport
from finetooth.data.near_duplicates import NearDuplicateFinder
from finetooth.data.quality import DoubleFinder
from finetooth.data.records import Record
from finetooth.data.rendering import render_records
from finetooth.data.sources.inputs import Source
from finetooth.data.sources.reading import BadLine
from finetooth.data.split import dev_threshold, group_of, split_key
from finetooth.data.statistics import Statistics, merged
from finetooth.data.store import StoreWriter
from finetooth.data.templates.template import Template

Judged = tuple[Outcome, Split]

_UNREAD_FIELDS_NOTED = 100


def write_prepared(
    folder: Path, config: SFTConfig, sources: Sequence[Source], template: Template
) -> dict[str, Any]:
    """Writes ledger.jsonl and the stores into an empty folder; returns what prepared.json says of them.

    Raises DataError with every record that must not be passed over, and where a split is left without
    documents; FinetoothError where the ledger, read back, does not add up with what was read and stored.
    """
    ledger = folder / "ledger.jsonl"
    with contextlib.ExitStack() as stack:
        writers: dict[Split, StoreWriter] = {}
        for split in SPLITS if config.data.dev is not None else SPLITS[:1]:
            (folder / split).mkdir()
            writers[split] = stack.enter_context(
                StoreWriter(
                    folder / split,
                    tokenizer_fingerprint=template.tokenizer.fingerprint,
                    template_fingerprint=template.fingerprint,
                )
            )
        tally = _Tally([_SourceTally() for _ in sources])
        _write_records(ledger, writers, config, sources, template, tally)
        counts = count_ledger(ledger)
        _require_sums(counts, writers, tally.num_read, ledger)
        _require_documents(counts, writers, config.data)
    return {
        "has_more_records": any(source.has_more(template) for source in sources if source.split == "train"),
        "counts": {split: dataclasses.asdict(count) for split, count in counts.items()},
        "statistics": tally.statistics(sources, writers),
        "train_documents": [(part.begin, part.end) for part in tally.sources],
        "report": dataclasses.asdict(tally.report),
        "num_near_duplicates": tally.num_near_duplicates,
        "unread_fields": dict(sorted(tally.unread_fields.items())),
    }


@dataclass(slots=True)
class _SourceTally:
    """Of one source: problems, figures of each split, and where its documents stand in train's store."""

    problems: list[str] = field(default_factory=list[str])
    statistics: dict[Split, Statistics] = field(default_factory=dict[Split, Statistics])
    begin: int = 0
    end: int = 0


@dataclass(slots=True)
class _Tally:
    """What adds up while records pass; the number read is compared with what the ledger says."""

    sources: list[_SourceTally]
    num_read: int = 0
    report: RenderReport = field(default_factory=RenderReport)
    unread_fields: Counter[str] = field(default_factory=Counter[str])
    num_near_duplicates: int = 0

    def counted(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self.num_read += 1
            yield entry

    def note(self, judged: Sequence[Judged], part: _SourceTally) -> None:
        """Notes records of a source."""
        part.problems.extend(outcome.problem() for outcome, _ in judged if outcome.is_error)
        for outcome, split in judged:
            if outcome.state == "kept":
                part.statistics.setdefault(split, Statistics()).add(outcome)
                self._note_kept(outcome)

    def _note_kept(self, outcome: Outcome) -> None:
        self.num_near_duplicates += outcome.same_as is not None
        if outcome.change is not None:
            self.report += outcome.change
        for name in outcome.unread:
            if name in self.unread_fields or len(self.unread_fields) < _UNREAD_FIELDS_NOTED:
                self.unread_fields[name] += 1

    def statistics(self, sources: Sequence[Source], splits: Iterable[Split]) -> dict[str, Any]:
        """By split: the figures of all its records, and under "sources" those of each source, in order."""
        described: dict[str, Any] = {}
        for split in splits:
            parts = [
                (s.path, t.statistics[split])
                for s, t in zip(sources, self.sources, strict=True)
                if split in t.statistics
            ]
            by_source = [{"path": path, **part.summary()} for path, part in parts]
            described[split] = {**merged(part for _, part in parts).summary(), "sources": by_source}
        return described


def _write_records(
    ledger: Path,
    writers: Mapping[Split, StoreWriter],
    config: SFTConfig,
    sources: Sequence[Source],
    template: Template,
    tally: _Tally,
) -> None:
    """Writes every record's documents and ledger line.

    Sources of dev come first, so that what train must not hold is known; their lines end the ledger.
    """
    judge = _judge_of(config, sources, template)
    lines_of_dev = ledger.with_name("ledger.dev")
    with ledger.open("wb") as train_file, lines_of_dev.open("w+b") as dev_file:
        parts = zip(sources, tally.sources, strict=True)
        for source, part in sorted(parts, key=lambda pair: pair[0].split != "dev"):
            part.begin = writers["train"].num_documents
            file = dev_file if source.split == "dev" else train_file
            for outcomes in _rendered(source, config.data, template, tally):
                judged = judge(outcomes, source)
                lines = [outcome.ledger_line(split, source.path) for outcome, split in judged]
                file.write(b"".join(encode_line(line) + b"\n" for line in lines))
                for split, writer in writers.items():
                    kept = [o for o, s in judged if s == split and o.state == "kept"]
                    writer.extend([document for outcome in kept for document in outcome.documents])
                tally.note(judged, part)
            source.require_unchanged()
            part.end = writers["train"].num_documents
        dev_file.seek(0)
        shutil.copyfileobj(dev_file, train_file)
    lines_of_dev.unlink()
    if problems := [told for part in tally.sources for told in part.problems]:
        raise DataError(problems)


def _rendered(source: Source, data: DataConfig, template: Template, tally: _Tally) -> Iterator[list[Outcome]]:
    entries = tally.counted(source.entries(template))
    return render_records(entries, template, format=source.format, fields=source.settings.fields, data=data)


def _judge_of(
    config: SFTConfig, sources: Sequence[Source], template: Template
) -> Callable[[list[Outcome], Source], list[Judged]]:
    """What puts each outcome into its split and drops what stands twice."""
    data, seed = config.data, config.training.seed
    finder = DoubleFinder(data)
    near = None if data.on_near_duplicate == "keep" else NearDuplicateFinder(data)
    threshold = _dev_threshold(config, sources, template) if isinstance(data.dev, float) else 0

    def judge(outcomes: list[Outcome], source: Source) -> list[Judged]:
        splits: list[Split] = [source.split] * len(outcomes)
        if threshold:
            for place, outcome in enumerate(outcomes):
                group = group_of(outcome.entry, outcome.read, data.group_by)
                if group is None:
                    outcomes[place] = _without_group(outcome, data)
                elif split_key(group, seed=seed) < threshold:
                    splits[place] = "dev"
        judged = finder.judge(outcomes, splits)
        return list(zip(near.judge(judged) if near else judged, splits, strict=True))

    return judge


def _without_group(outcome: Outcome, data: DataConfig) -> Outcome:
    if outcome.state == "refused":
        return outcome
    return replace(
        outcome,
        state="refused",
        documents=(),
        reason=f"no field {data.group_by!r}, which data.group_by names",
        remedy="add it, or remove the record",
        is_error=data.on_bad_record == "error",
    )


def _dev_threshold(config: SFTConfig, sources: Sequence[Source], template: Template) -> int:
    """The split key below which a record goes to dev."""
    assert isinstance(config.data.dev, float)

    def groups() -> Iterator[bytes]:
        for source in sources:
            for entry in source.entries(template):
                group = group_of(entry, _understood(entry, source, config.data), config.data.group_by)
                if group is not None and not isinstance(entry, BadLine):
                    yield group

    return dev_threshold(groups(), config.data.dev, seed=config.training.seed)


def _understood(entry: Entry, source: Source, data: DataConfig) -> Item | None:
    if not isinstance(entry, Record):
        return None if isinstance(entry, BadLine) else entry
    fields, input_join = source.settings.fields, data.input_join
    read = to_conversation(entry, format=source.format, fields=fields, input_join=input_join)
    return None if isinstance(read, BadRecord) else read


def _require_sums(
    counts: Mapping[str, Counts], writers: Mapping[Split, StoreWriter], num_read: int, ledger: Path
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
        raise FinetoothError(problem(ledger, fact, "report this mistake of finetooth"))


def _require_documents(
    counts: Mapping[str, Counts], writers: Mapping[Split, StoreWriter], data: DataConfig
) -> None:
    problems: list[str] = []
    for split, writer in writers.items():
        if writer.num_documents:
            continue
        has_own = split == "dev" and not isinstance(data.dev, float)
        place = describe_sources(data.dev if has_own else data.train)
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
