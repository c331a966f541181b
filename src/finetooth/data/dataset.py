"""SFTDataset: records as documents in memory, for those who write their own training loop."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.config.checks import find_problems
from finetooth.config.schema import DataConfig
from finetooth.config.settings import settings_of
from finetooth.config.sources import Format, SourceConfig
from finetooth.data.formats.reading import Format as SettledFormat
from finetooth.data.formats.reading import is_prompt_response, settle_format
from finetooth.data.ledger import SPLITS, Outcome
from finetooth.data.masks.turns import LossOn
from finetooth.data.near_duplicates import NearDuplicateFinder
from finetooth.data.quality import DoubleFinder
from finetooth.data.records import IGNORED_LABEL, Document, Origin, Record
from finetooth.data.rendering import render_records
from finetooth.data.sources.files import files_of
from finetooth.data.sources.inputs import entries_of
from finetooth.data.sources.reading import BadLine, NotARecordError, parse_object
from finetooth.data.store import ContentHashes
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.tokenizer import as_tokenizer


class SFTDataset:
    """Documents made of records exactly as a run makes them, kept in memory.

    records:   a file, folder or pattern, or dicts such as {"prompt": "2+2?", "response": "4"}
    tokenizer: a tokenizer of transformers, or the folder or hub name of one
    The other arguments are the settings of the same name in run.yaml's `data` section.

    It is a sequence: len(dataset), dataset[0], iteration; each item is a Document with token_ids and
    loss_weights. `template` is the Template that was used, `ledger` the fate of every record, one dict each.
    Raises ConfigError for arguments that mean nothing, DataError listing every record that cannot be used.

    >>> dataset = SFTDataset([{"prompt": "2+2?", "response": "4"}], "base")      # doctest: +SKIP
    >>> dataset[0].num_targets                          # "4" and the end token  # doctest: +SKIP
    2
    """

    def __init__(
        self,
        records: str | Path | Iterable[Mapping[str, Any]],
        tokenizer: Any,
        *,
        format: Format = "auto",
        fields: Mapping[str, str] | None = None,
        input_join: str = "\n\n",
        template: str = "auto",
        template_args: Mapping[str, Any] | None = None,
        system: str | None = None,
        loss_on: LossOn = "assistant",
        train_reasoning: bool = True,
        train_end_token: bool = False,
        allow_tokens: Sequence[str] = (),
        max_length: int = 2048,
        on_bad_record: Literal["error", "drop"] = "error",
        on_long_document: Literal["drop", "error", "keep-turns"] = "drop",
        on_duplicate: Literal["drop", "error", "keep"] = "drop",
        on_near_duplicate: Literal["keep", "report", "drop"] = "keep",
        near_duplicate_similarity: float = 0.85,
        max_records: int | None = None,
    ):
        place = str(records) if isinstance(records, str | Path) else "records"
        data = DataConfig(
            train=place,
            dev=None,
            format=format,
            fields=None if fields is None else dict(fields),
            input_join=input_join,
            template=template,
            template_args=dict(template_args or {}),
            system=system,
            loss_on=loss_on,
            train_reasoning=train_reasoning,
            train_end_token=train_end_token,
            allow_tokens=list(allow_tokens),
            max_length=max_length,
            on_bad_record=on_bad_record,
            on_long_document=on_long_document,
            on_duplicate=on_duplicate,
            on_near_duplicate=on_near_duplicate,
            near_duplicate_similarity=near_duplicate_similarity,
            max_records=max_records,
        )
        _require_sensible(data)
        read = _reader_of(records)
        found = settle_format(read(), place, format=data.format, fields=data.fields)
        self.template = _template_for(found, tokenizer, data)
        self.tokenizer = self.template.tokenizer
        outcomes = _render(itertools.islice(read(), max_records), self.template, found, data)
        self.ledger = [outcome.ledger_line("train", place) for outcome in outcomes]
        self._documents = [d for outcome in outcomes if outcome.state == "kept" for d in outcome.documents]
        self.lengths = np.array([len(d.token_ids) for d in self], np.int64)
        self.num_targets = np.array([d.num_targets for d in self], np.int64)
        self.loss_weight_totals = np.array([d.loss_weights.sum(dtype=np.float64) for d in self])
        self.fingerprint = _fingerprint_of(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)

    def document(self, number: int, /) -> Document:
        """The document with this number, counted from 0."""
        return self._documents[number]

    def padded(self, max_length: int | None = None, *, pad_id: int | None = None) -> dict[str, np.ndarray]:
        """All documents as arrays int64 [S, T], padded at the right, as transformers models take them.

        T is max_length, or the longest document's length; pad_id is the tokenizer's pad token, else its end
        token, else 0. Labels stand at the place of their token (models shift them) and are -100 where nothing
        is trained. Raises DataError where a document is longer than max_length: nothing is ever cut.

            documents 5 6 [7 8] and 5 [9]        ([…] = targets), pad_id 0:
            input_ids      = [[5, 6, 7, 8],          [5, 9, 0, 0]]
            attention_mask = [[1, 1, 1, 1],          [1, 1, 0, 0]]
            labels         = [[-100, -100, 7, 8],    [-100, 9, -100, -100]]
        """
        width = int(self.lengths.max()) if max_length is None else max_length
        too_long = np.flatnonzero(self.lengths > width)
        if len(too_long):
            remedy = "raise max_length, or give it to SFTDataset to leave such records out"
            raise DataError(
                problem(self[n].origin, f"{self.lengths[n]} tokens, more than max_length ({width})", remedy)
                for n in map(int, too_long)
            )
        filling = self._pad_id() if pad_id is None else pad_id
        input_ids = np.full((len(self), width), filling, np.int64)
        labels = np.full((len(self), width), IGNORED_LABEL, np.int64)
        for row, document in enumerate(self):
            length = len(document.token_ids)
            input_ids[row, :length] = document.token_ids
            labels[row, :length] = np.where(document.loss_weights > 0, document.token_ids, IGNORED_LABEL)
        attention_mask = (np.arange(width) < self.lengths[:, None]).astype(np.int64)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _pad_id(self) -> int:
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token_id for token_id in candidates if token_id is not None)


def _require_sensible(data: DataConfig) -> None:
    settings = {f"data.{name}": setting for name, setting in settings_of(DataConfig).items()}
    values = {f"data.{field.name}": getattr(data, field.name) for field in dataclasses.fields(data)}
    if findings := find_problems(settings, values):
        raise ConfigError(problem("SFTDataset", finding.fact, finding.remedy) for finding in findings)


def _reader_of(records: str | Path | Iterable[Mapping[str, Any]]) -> Callable[[], Iterator[Record | BadLine]]:
    """Reads the records from their start, as often as it is called."""
    if isinstance(records, str | Path):
        files = files_of(SourceConfig(path=str(records)), place="records")
        return functools.partial(entries_of, files)
    return functools.partial(iter, _entries_of(records))


def _entries_of(records: Iterable[object]) -> list[Record | BadLine]:
    """Dicts checked as strictly as lines of a file; origins count from `records:1`."""
    entries: list[Record | BadLine] = []
    for line, fields in enumerate(records, start=1):
        origin = Origin("records", line)
        try:
            entries.append(Record(origin, parse_object(json.dumps(fields))))
        except NotARecordError as error:
            entries.append(BadLine(origin, str(error)))
        except (TypeError, ValueError, RecursionError) as error:
            entries.append(BadLine(origin, f"not JSON: {error}"))
    if not entries:
        raise DataError(problem("records", "holds no record", "give at least one"))
    return entries


def _template_for(format: SettledFormat, tokenizer: Any, data: DataConfig) -> Template:
    return resolve_template(
        data.template,
        as_tokenizer(tokenizer),
        template_args=data.template_args,
        system=data.system,
        allow_tokens=data.allow_tokens,
        is_prompt_response=is_prompt_response(format),
    )


def _render(
    entries: Iterable[Record | BadLine], template: Template, format: SettledFormat, data: DataConfig
) -> list[Outcome]:
    finder = DoubleFinder(data)
    rendered = render_records(entries, template, format=format, fields=data.fields, data=data)
    portions = (finder.judge(portion, SPLITS[:1] * len(portion)) for portion in rendered)
    near = None if data.on_near_duplicate == "keep" else NearDuplicateFinder(data)
    outcomes = [o for portion in portions for o in (near.judge(portion) if near else portion)]
    if problems := [outcome.problem() for outcome in outcomes if outcome.is_error]:
        raise DataError(problems)
    if all(outcome.state != "kept" for outcome in outcomes):
        fact = f"none of {len(outcomes)} records can be used (the first: {outcomes[0].reason})"
        raise DataError(problem(data.train, fact, "correct the records or raise max_length"))
    return outcomes


def _fingerprint_of(documents: list[Document]) -> str:
    hashes = ContentHashes()
    for document in documents:
        hashes.add_document(document)
    return hashes.fingerprint()
