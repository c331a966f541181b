"""What is read of the files of a run directory, and proof that it is there in the right types.

A file may hold more than is named here, and of what is optional, less.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

import msgspec
from msgspec import Meta

from finetooth.base.errors import FinetoothError, problem
from finetooth.base.kinds import require_kind

_REMEDY = "restore it, or name another run"

# Bounds that no run comes near, within which sums and products of numbers stay numbers.
Amount = Annotated[int, Meta(ge=0, le=2**53)]
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
# A measured value may also be infinite or not a number, or null.
Measured = float | None


class Summary(TypedDict, total=False):
    """summary.json."""

    state: str
    problems: list[str]
    num_steps: Amount
    ended_early: str
    final_step: Amount
    num_documents: Amount
    num_tokens: Amount
    num_targets: Amount
    seconds: Annotated[float, Meta(ge=0, le=1e12)]
    peak_memory_mb: Number


class NotesOnTemplate(TypedDict, total=False):
    """What environment.json notes of the template."""

    name: str
    now: datetime | None
    added_tokens: list[str]
    untrained_tokens: list[str]


class Environment(TypedDict, total=False):
    """environment.json."""

    command: list[str]
    versions: dict[str, str]
    python: str
    platform: str
    device: str
    device_type: str
    precision: str
    template: NotesOnTemplate


class ScheduleFile(TypedDict, total=False):
    """schedule.json."""

    num_steps: Amount
    fingerprint: str


class VerdictLine(TypedDict, total=False):
    """One verdict of verified.json."""

    name: str
    state: str
    what: str


class Verified(TypedDict, total=False):
    """verified.json."""

    passed: bool
    to: str
    dtype: str
    verdicts: list[VerdictLine]


class ManifestEntry(TypedDict):
    """What MANIFEST.json holds of a file."""

    sha256: str


class Manifest(TypedDict, total=False):
    """MANIFEST.json of final/."""

    files: dict[str, ManifestEntry]


class SpikeDocument(TypedDict):
    """A document of a step whose loss leapt."""

    origin: str
    loss: float


class Spike(TypedDict, total=False):
    """What metrics.jsonl notes of a step whose loss leapt."""

    usual_loss: float
    documents: list[SpikeDocument]


class Change(TypedDict, total=False):
    """A setting that another one took the place of."""

    before: Any
    now: Any


class MetricsLine(TypedDict, total=False):
    """One line of metrics.jsonl; evaluations may hold further figures, and tables of them."""

    step: Required[Amount]
    loss: Measured
    learning_rate: Measured
    grad_norm: Measured
    num_targets: Number
    num_tokens: Number
    seconds: Number
    peak_memory_mb: Measured
    train_loss: Measured
    dev_loss: Measured
    spike: Spike
    skipped: list[str]
    changes: dict[str, Change]


class SourceStatistics(TypedDict):
    """Figures of one source in data.json."""

    path: str
    records: Amount
    tokens: Amount
    targets_share: Number


class HistogramOfLengths(TypedDict):
    """How many documents are so long."""

    edges: Annotated[list[Number], Meta(min_length=2, max_length=1001)]
    counts: Annotated[list[Amount], Meta(max_length=1000)]


class Lengths(TypedDict, total=False):
    """Lengths of documents; of none, nothing."""

    median: Number
    p95: Amount
    histogram: HistogramOfLengths


class Statistics(TypedDict, total=False):
    """Figures of a split in data.json."""

    sources: list[SourceStatistics]
    lengths: Lengths
    turns: dict[str, Amount]


class SplitSummary(TypedDict, total=False):
    """What data.json tells of a split."""

    fingerprint: Required[str]
    statistics: Statistics


class DataSummary(TypedDict, total=False):
    """What data.json tells of all records."""

    template: Required[str]
    num_divided: Amount
    num_left_out: Amount
    num_near_duplicates: Amount
    splits: dict[str, SplitSummary]


class ShownSource(TypedDict):
    """A source in data.json; files: each with its SHA-256."""

    path: str
    format: str
    files: list[tuple[str, str]]


class Holder(TypedDict):
    """.lock: the process that writes."""

    host: str
    pid: Annotated[int, Meta(ge=1, lt=2**31)]
    since: str


def read_object(path: Path, kind: Any, *, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none. Raises FinetoothError for anything else.

    kind:  one of the classes above, with which the object must agree; what it does not name is kept
    needs: what must stand in it, so that the file must be there, too
    """
    if needs:
        require_file(path)
    elif not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise damaged(path)
    try:
        require_kind(content, kind)
    except msgspec.ValidationError as error:
        raise damaged(path, str(error)) from None
    if absent := [name for name in needs if name not in content]:
        raise damaged(path, f"it holds no {', '.join(absent)}")
    return content


def each_object(path: Path, kind: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines, none where there is no file.

    A last line that was cut off while it was written is left out. Raises FinetoothError, with the line's
    number, for anything else.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _object_of(line, kind, f"{path}:{number}")


def _object_of(line: bytes, kind: Any, place: str) -> dict[str, Any]:
    remedy = "remove the line, or name another run"
    try:
        content = json.loads(line)
        require_kind(content, kind)
    except msgspec.ValidationError as error:
        raise FinetoothError(problem(place, f"no line that a run writes: {error}", remedy)) from None
    except (ValueError, RecursionError):
        raise FinetoothError(problem(place, "no line that a run writes", remedy)) from None
    return content


def require_file(path: Path) -> None:
    """Raises FinetoothError where a file is missing that every run writes."""
    if not path.is_file():
        raise FinetoothError(problem(path, "missing", _REMEDY))


@contextlib.contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Within it, what msgspec says of a file that is read becomes the error for one that no run writes so."""
    try:
        yield
    except msgspec.MsgspecError:
        raise damaged(path) from None


def damaged(path: Path, why: str = "") -> FinetoothError:
    """The error for a file that no run writes so."""
    fact = f"not what a run writes: {why}" if why else "not what a run writes"
    return FinetoothError(problem(path, fact, _REMEDY))
