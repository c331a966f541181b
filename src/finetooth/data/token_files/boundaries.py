"""Where documents begin in a stream of tokens that stores no boundaries.

An end token closes a turn, not a document, so documents are recovered from what opens a conversation. What
that is, the template tells:

    the tokenizer's BOS token   opens a document wherever it stands
    <|im_start|>, <SOT>, <SOU>  opens one where no newline stands before it, and always before a system text:
                                behind a newline ("<|im_end|>\\n<|im_start|>") the conversation goes on
    <|system|>\\n, <|user|>\\n    plain words behind an end token: the system header opens a document

Where data.single_turn declares that each document has one question, every question opens one, unless it
stands behind a system text.

Whatever else a template begins with is refused.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from finetooth.base.errors import DataError, problem
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, encode_prompt
from finetooth.data.tokenizer.tokenizer import Tokenizer

MAX_DOCUMENT_TOKENS = 2**24

_DOUBT = "a question behind an answer may open a document or go on with one"
_REMEDY = "set data.single_turn: true if each has one question, else write .jsonl with input_ids and labels"

_START, _SYSTEM, _QUESTION, _OTHER = range(4)  # what a header begins
_Header = tuple[int, tuple[int, ...], str]
_SIX_TOKENS = {"<SOT>": _SYSTEM, "<SOU>": _QUESTION, "<SOA>": _OTHER}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of a stream as they are read.

    token_ids: integers [T]
    marks:     int8 [T], what becomes of the tokens, carried along
    is_start:  whether no document reaches into it: the beginning of the file, or behind padding
    """

    token_ids: np.ndarray
    marks: np.ndarray
    is_start: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A document of a stream; or, where `opens` is false, tokens whose beginning is missing.

    is_doubtful: whether it opens without system text and holds a question behind an answer, which goes on
                 with the conversation only if a newline before a header says so
    is_last:     whether the stream ends with it
    """

    token_ids: np.ndarray
    marks: np.ndarray
    opens: bool
    is_doubtful: bool = False
    is_last: bool = False


class UndividableError(ValueError):
    """The documents of a stream cannot be told apart; `fact` says why, `remedy` what to do."""

    def __init__(self, fact: str, remedy: str = "write it as .jsonl with input_ids and labels"):
        super().__init__(fact)
        self.fact = fact
        self.remedy = remedy


@dataclass(frozen=True, eq=False)
class Openings:
    """How documents of a template begin.

    headers:    by what they begin, ids and the text with which the next token begins:
                ((2, (151644, 872), "\\n"),) for <|im_start|>user
    style:      bos, tight (a newline before a header means that the conversation goes on) or plain words
    end_tokens: ids that can end a turn
    """

    tokenizer: Tokenizer
    style: Literal["bos", "tight", "plain"]
    headers: tuple[_Header, ...]
    end_tokens: np.ndarray
    texts: dict[int, str] = field(default_factory=dict[int, str])

    def ends_turn(self, token_ids: np.ndarray) -> bool:
        """Whether tokens [T] end with the end of a turn, and perhaps a newline behind it."""
        last = token_ids[-2:]
        if len(last) == 2 and self._text(int(last[1])).strip("\n") == "":
            last = last[:1]
        return bool(np.isin(last[-1], self.end_tokens))

    def ends_in_newline(self, token_ids: np.ndarray) -> bool:
        """Whether the last of tokens [T] writes a newline at its end."""
        return self._text(int(token_ids[-1])).endswith("\n")

    def opens_at_start(self, token_ids: np.ndarray) -> bool:
        """Whether tokens [T], before which nothing stands, begin with a question or a system text."""
        longest = max(len(prefix) for _, prefix, _ in self.headers)
        positions, kinds = self._headers_in(token_ids[: longest + 1], is_end=True)
        return bool(len(positions) and positions[0] == 0 and kinds[0] != _OTHER)

    def find(
        self, token_ids: np.ndarray, *, single_turn: bool, is_end: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The headers in tokens [T], before which nothing stands: int64 positions, whether each opens, kinds.

        Headers so near the end that they cannot be told yet are left out, unless the stream ends there.
        """
        positions, kinds = self._headers_in(token_ids, is_end=is_end)
        before = np.concatenate([[_OTHER], kinds])[:-1]
        opens = (kinds == _START) | ((kinds == _SYSTEM) & (before != _SYSTEM))
        if single_turn:
            opens |= (kinds == _QUESTION) & (before != _SYSTEM)
        if self.style == "tight":
            is_tight = ~self._writes(token_ids[positions - 1], lambda text: text.endswith("\n"))
            is_tight[positions == 0] = True
            if np.any(is_tight & (kinds == _OTHER) & (positions > 0)):
                raise UndividableError("a turn within a conversation begins without a newline before it")
            opens |= is_tight & (kinds != _OTHER)
        if self.style == "plain" and np.any((positions == 0) & (kinds == _QUESTION) & ~opens):
            raise UndividableError(f"it begins with a question, and {_DOUBT}", _REMEDY)
        return positions, opens, kinds

    def _headers_in(self, token_ids: np.ndarray, *, is_end: bool) -> tuple[np.ndarray, np.ndarray]:
        longest = max(len(prefix) for _, prefix, _ in self.headers)
        found: list[tuple[np.ndarray, int]] = []
        for kind, prefix, rest in self.headers:
            num_starts = len(token_ids) - (len(prefix) if is_end else longest)
            at = np.flatnonzero(token_ids[: max(0, num_starts)] == prefix[0])
            for step, token_id in enumerate(prefix[1:], 1):
                at = at[token_ids[at + step] == token_id]
            if rest:
                at = at[self._writes(token_ids[at + len(prefix)], operator.methodcaller("startswith", rest))]
            if self.style == "plain":
                at = at[self._is_behind_end(token_ids, at)]
            found.append((at, kind))
        positions = np.concatenate([at for at, _ in found])
        kinds = np.concatenate([np.full(len(at), kind, np.int8) for at, kind in found])
        order = np.lexsort((kinds, positions))
        positions, kinds = positions[order], kinds[order]
        is_first = np.diff(positions, prepend=-1) > 0  # <|im_start|> alone matches every header
        return positions[is_first], kinds[is_first]

    def _is_behind_end(self, token_ids: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Whether an end token stands before each position, perhaps with a newline between."""
        before, before_that = token_ids[at - 1], token_ids[at - 2]
        is_newline = self._writes(before, lambda text: text != "" and text.strip("\n") == "")
        is_behind = np.isin(before, self.end_tokens) & (at > 0)
        return is_behind | (is_newline & np.isin(before_that, self.end_tokens) & (at > 1)) | (at == 0)

    def _writes(self, token_ids: np.ndarray, holds: Callable[[str], bool]) -> np.ndarray:
        """Whether the text of each token [N] is such that `holds`."""
        distinct, inverse = np.unique(token_ids, return_inverse=True)
        return np.array([holds(self._text(int(one))) for one in distinct], bool)[inverse.reshape(-1)]

    def _text(self, token_id: int) -> str:
        if token_id not in self.texts:
            known = 0 <= token_id <= self.tokenizer.largest_id
            self.texts[token_id] = self.tokenizer.decode([token_id]) if known else ""
        return self.texts[token_id]


_NOTHING = Piece(np.empty(0, np.int32), np.empty(0, np.int8), opens=False)


def openings_of(template: Template, place: str) -> Openings:
    """How the documents of a template begin.

    place: what is to be divided, for messages. Raises DataError where nothing marks a beginning.
    """
    tokenizer = template.tokenizer
    ends = {*template.stop_token_ids, tokenizer.eos_token_id} - {None}
    end_tokens = np.array(sorted(token for token in ends if token is not None), np.int64)
    prompt = encode_prompt(template, [Message("user", "question")]) or [-1]
    start = tokenizer.control_tokens.get("<|im_start|>")
    control = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    if prompt[0] == tokenizer.bos_token_id:
        return Openings(tokenizer, "bos", ((_START, (prompt[0],), ""),), end_tokens)
    if prompt[0] == start:
        words = {_SYSTEM: "system\n", _QUESTION: "user\n"}
        headers = (*_worded(words, tokenizer, (prompt[0],)), (_OTHER, (prompt[0],), ""))
        return Openings(tokenizer, "tight", headers, end_tokens)
    if control.get(prompt[0]) in ("<SOT>", "<SOU>"):
        known = [text for text in _SIX_TOKENS if text in tokenizer.control_tokens]
        headers = tuple((_SIX_TOKENS[text], (tokenizer.control_tokens[text],), "") for text in known)
        return Openings(tokenizer, "tight", headers, end_tokens)
    words = {_SYSTEM: "<|system|>\n", _QUESTION: "<|user|>\n", _OTHER: "<|assistant|>\n"}
    headers = _worded(words, tokenizer, ())
    if any(tuple(prompt[: len(prefix)]) == prefix for _, prefix, _ in headers):
        return Openings(tokenizer, "plain", headers, end_tokens)
    fact = "it stores no boundaries, and an end token closes turns, not documents"
    remedy = f"write it as .jsonl with input_ids and labels; the template {template.name} opens no document"
    raise DataError(problem(place, fact, remedy))


def divide(stretches: Iterable[Stretch], openings: Openings, *, single_turn: bool) -> Iterator[Piece]:
    """Divides a stream into its documents, in order; nothing of it is left out.

    Memory holds one document and one stretch. Raises UndividableError where boundaries are ambiguous, which
    may show at the end of the stream only.
    """
    held, num_opened, is_doubtful = _NOTHING, 0, False
    for stretch in stretches:
        ends, held = ([held], _NOTHING) if stretch.is_start and len(held.token_ids) else ([], held)
        whole = [piece for end in ends for piece in _cut(end, openings, single_turn, is_end=True)]
        *more, held = _cut(_joined(held, stretch), openings, single_turn, is_end=False)
        for piece in (*whole, *more):
            yield piece
            num_opened += piece.opens
            is_doubtful |= piece.is_doubtful
        if len(held.token_ids) > MAX_DOCUMENT_TOKENS:
            raise UndividableError(f"no document begins within {MAX_DOCUMENT_TOKENS:,} tokens")
    if not len(held.token_ids):
        raise UndividableError("it holds no tokens", "check that this is the right file")
    *rest, last = _cut(held, openings, single_turn, is_end=True)
    yield from (*rest, dataclasses.replace(last, is_last=True))
    if not (num_opened or any(piece.opens for piece in (*rest, last))):
        raise UndividableError("nothing in it opens a document", _REMEDY)
    is_doubtful |= any(piece.is_doubtful for piece in (*rest, last))
    if is_doubtful and openings.ends_in_newline(last.token_ids):
        raise UndividableError(f"its documents end in a newline, so {_DOUBT}", _REMEDY)


def _joined(piece: Piece, stretch: Stretch) -> Piece:
    if not len(piece.token_ids):
        return Piece(stretch.token_ids, stretch.marks, opens=False)
    token_ids = np.concatenate([piece.token_ids, stretch.token_ids])
    return Piece(token_ids, np.concatenate([piece.marks, stretch.marks]), piece.opens)


def _cut(piece: Piece, openings: Openings, single_turn: bool, *, is_end: bool) -> list[Piece]:
    """A piece cut where documents open in it; of it all, one part at least."""
    positions, opens, kinds = openings.find(piece.token_ids, single_turn=single_turn, is_end=is_end)
    starts = np.unique(np.concatenate([[0], positions[opens]]))
    first_opens = piece.opens or (len(positions) > 0 and positions[0] == 0 and bool(opens[0]))
    doubtful = _doubtful_positions(positions, opens, kinds)
    parts: list[Piece] = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(piece.token_ids)], strict=True)):
        begin = np.searchsorted(doubtful, [start, end])
        parts.append(
            Piece(
                piece.token_ids[start:end],
                piece.marks[start:end],
                opens=number > 0 or first_opens,
                is_doubtful=openings.style == "tight" and begin[0] < begin[1],
            )
        )
    return parts


def _doubtful_positions(positions: np.ndarray, opens: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Where a question stands behind an answer, in a document that no system text opened."""
    before = np.concatenate([[_START], kinds])[:-1]
    last_opening = np.maximum.accumulate(np.where(opens, np.arange(len(kinds)), 0))
    opened_by = kinds[last_opening] if len(kinds) else kinds
    return positions[(kinds == _QUESTION) & ~opens & (before == _OTHER) & (opened_by != _SYSTEM)]


def _worded(texts: Mapping[int, str], tokenizer: Tokenizer, before: tuple[int, ...]) -> tuple[_Header, ...]:
    """Headers that are words: their last token may have grown together with what follows."""
    headers: list[_Header] = []
    for kind, text in texts.items():
        *ids, last = tokenizer.encode_text(text)
        headers.append((kind, (*before, *ids), tokenizer.decode([last])))
    return tuple(headers)
