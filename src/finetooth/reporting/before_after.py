"""The same prompts answered before and after training, with what has changed between the answers."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from finetooth.reporting.run_reading import Answer

Kind = Literal["same", "gone", "new"]
Change = Literal["got better", "got worse", "still wrong", "still right"]

_CHANGES: tuple[Change, ...] = ("got better", "got worse", "still wrong", "still right")
_SHOWN_OF_EACH = {"got better": 6, "got worse": 12, "still wrong": 6, "still right": 3}
_MOST_WORDS = 400
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Passage:
    """Words of an answer: in both, gone from the one before, or new in the one after."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with both answers and what the record holds."""

    before: Answer
    after: Answer
    change: Change
    old: list[Passage]
    new: list[Passage]


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """Of how many prompts each thing is true, and some of each."""

    counts: dict[Change, int]
    pairs: list[Pair]


def before_after(before: Sequence[Answer], after: Sequence[Answer]) -> BeforeAfter:
    """Pairs the answers by record and prompt; those to other prompts are left out."""
    earlier = {(answer.origin, answer.prompt): answer for answer in before}
    counts: dict[Change, int] = dict.fromkeys(_CHANGES, 0)
    shown: dict[Change, list[Pair]] = {change: [] for change in _CHANGES}
    for answer in after:
        old = earlier.get((answer.origin, answer.prompt))
        if old is None:
            continue
        change = _change(old, answer)
        counts[change] += 1
        if len(shown[change]) < _SHOWN_OF_EACH[change]:
            shown[change].append(_pair(old, answer, change))
    return BeforeAfter(counts, [pair for pairs in shown.values() for pair in pairs])


def _change(before: Answer, after: Answer) -> Change:
    if after.exact_match:
        return "still right" if before.exact_match else "got better"
    return "got worse" if before.exact_match else "still wrong"


def _pair(before: Answer, after: Answer, change: Change) -> Pair:
    passages = list(_passages(before.generated, after.generated))
    return Pair(
        before,
        after,
        change,
        old=[passage for passage in passages if passage.kind != "new"],
        new=[passage for passage in passages if passage.kind != "gone"],
    )


def _passages(old: str, new: str) -> Iterator[Passage]:
    """Compares word by word, of long answers the beginnings; what is not compared counts as changed.

    >>> [(p.kind, p.text) for p in _passages("a cat sat", "a dog sat")]
    [('same', 'a '), ('gone', 'cat'), ('new', 'dog'), ('same', ' sat')]
    """
    one, other = _WORD.findall(old), _WORD.findall(new)
    rest = "".join(one[_MOST_WORDS:]), "".join(other[_MOST_WORDS:])
    one, other = one[:_MOST_WORDS], other[:_MOST_WORDS]
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    for kind, start, stop, new_start, new_stop in matcher.get_opcodes():
        if kind == "equal":
            yield Passage("same", "".join(one[start:stop]))
            continue
        if stop > start:
            yield Passage("gone", "".join(one[start:stop]))
        if new_stop > new_start:
            yield Passage("new", "".join(other[new_start:new_stop]))
    if rest[0]:
        yield Passage("gone", rest[0])
    if rest[1]:
        yield Passage("new", rest[1])
