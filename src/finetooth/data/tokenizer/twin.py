"""A tokenizer's twin, in which only what a template wrote can become a control token.

Each control token of the original bears another name in the twin, one private-use character, under the same
id. What the template writes as a control token is replaced by that character before encoding; the same string
in a message stays what it is, plain text. One more private character, the mark, parts two texts so that no
token crosses the seam between them; its id is dropped.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import tokenizers

from finetooth.base.errors import ConfigError, problem
from finetooth.data.templates.provenance import UNPLACED, Run, Source, Traced, is_mark, spans_between
from finetooth.data.tokenizer.files import vocabulary_of

# Where the private characters begin: planes 15 and 16 of Unicode. Two, so that text which holds characters of
# one block can be encoded with the other.
BLOCKS = (0xF0000, 0x100000)


class MessageRun(NamedTuple):
    """Consecutive characters of one message, begin:begin + length in a text and start:end in their source.

    Both are equally long, but for a control token that message text was allowed to become: it is one
    character of the text. start and end are UNPLACED where the template did more than cut and join.
    """

    begin: int
    length: int
    source: Source
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template wrote, ready for a twin to encode.

    text:      as rendered, each control token that the template wrote replaced by its private character
    controls:  where in `text` those characters stand, ascending
    messages:  the runs of message text, ascending
    allowed:   where in `text` message text became a control token, as data.allow_tokens lets it; ascending
    generated: [(begin, end)] in `text`, what the template wrote inside `{% generation %}` blocks; ascending
    """

    text: str
    controls: tuple[int, ...]
    messages: tuple[MessageRun, ...]
    allowed: tuple[int, ...] = ()
    generated: tuple[tuple[int, int], ...] = ()

    @property
    def control_places(self) -> tuple[int, ...]:
        """Where in `text` any control token stands, ascending."""
        return tuple(sorted((*self.controls, *self.allowed))) if self.allowed else self.controls


class Twin:
    """An encoder to which a private character is a control token and a control token's name is plain text."""

    def __init__(
        self,
        definition: bytes,
        control_tokens: Mapping[str, int],
        *,
        swallowing: Collection[str],
        unknown_id: int | None,
        first_character: int,
        place: str,
    ):
        """Names the private characters; the encoder is built when something is encoded.

        definition:     a tokenizer.json
        control_tokens: ids by name; swallowing: those that take away the blanks behind them
        unknown_id:     of the token for what the vocabulary lacks
        place:          the setting that names the tokenizer, for messages
        """
        self._definition = definition
        self._unknown_id = unknown_id
        self._place = place
        self.mark = chr(first_character)
        self._characters = {token: chr(first_character + 1 + i) for i, token in enumerate(control_tokens)}
        self._control_text = _pattern_of(frozenset(control_tokens))
        self._own_text = re.compile(f"[{self.mark}-{chr(first_character + len(control_tokens))}]")
        self._neutralised_region = functools.lru_cache(maxsize=4096)(self._neutralise_region)
        self._ids = {character: control_tokens[token] for token, character in self._characters.items()}
        self._swallowing = frozenset(self._characters[token] for token in swallowing)

    def holds_own_characters(self, text: str) -> bool:
        """Whether a text holds a character that this twin would take for a control token."""
        return not text.isascii() and self._own_text.search(text) is not None

    def swallows(self, stretch: str, following: str) -> bool:
        """Whether the control token that begins a stretch takes away the blank that follows the stretch."""
        return stretch[:1] in self._swallowing and not stretch[1:].strip() and following.isspace()

    def neutralise(self, rendered: Traced, *, allowed: frozenset[str] = frozenset()) -> Rendered:
        """Replaces the control tokens in what the template wrote; what a message wrote stays as it is.

        allowed: control tokens that are replaced in message text too, where one stands whole in one run
        """
        plain = str.__str__(rendered)
        pieces: list[str] = []
        controls: list[int] = []
        messages: list[MessageRun] = []
        admitted: list[int] = []
        marks: list[tuple[int, Run]] = []
        begin = written = 0
        for length, source, start in _merged(rendered.runs):
            if not length:
                marks.append((written, (length, source, start)))
                continue
            piece = plain[begin : begin + length]
            begin += length
            if source is None:
                piece, places = self._neutralised_region(piece)
                controls.extend([written + place for place in places])
            elif allowed and len(parts := _pattern_of(allowed).split(piece)) > 1:
                runs, places = self._admit(parts, written, source, start)
                messages.extend(runs)
                admitted.extend(places)
                piece = "".join(self._characters[part] if i % 2 else part for i, part in enumerate(parts))
            else:
                end = start if start == UNPLACED else start + length
                messages.append(MessageRun(written, length, source, start, end))
            pieces.append(piece)
            written += len(piece)
        generated = spans_between(marks)
        return Rendered("".join(pieces), tuple(controls), tuple(messages), tuple(admitted), generated)

    def names_in(self, neutralised: str) -> list[str]:
        """The names of control tokens that stand in a neutralised text, in order; they stayed plain text."""
        return self._control_text.findall(neutralised)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of neutralised texts, each int32 [T]."""
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_after_mark(self, text: str) -> np.ndarray:
        """The token ids, int32 [T], of a text as it stands behind other text, no token crossing the seam."""
        return np.array([token_id for token_id, _ in self._encode_behind(text)], np.int32)

    def last_characters(self, text: str, *, seam: int = 0) -> np.ndarray:
        """For each token of a neutralised text, where its last character stands: int64 [T].

        seam: text[:seam] and text[seam:] are encoded apart. This is slow beside encode_batch.
        """
        spans = self._encoder.encode(text[:seam] if seam else text, add_special_tokens=False).offsets
        behind = self._encode_behind(text[seam:]) if seam else []
        spans = [*spans, *((seam + begin, seam + end) for _, (begin, end) in behind)]
        return np.array([max(begin, end - 1) for begin, end in spans], np.int64)

    def characters_of(self, token_ids: Collection[int]) -> frozenset[str]:
        """The private characters of control tokens."""
        return frozenset(character for character, token_id in self._ids.items() if token_id in token_ids)

    def ids_of(self, characters: Iterable[str]) -> list[int]:
        """The ids of private characters."""
        return [self._ids[character] for character in characters]

    def find_controls(self, token_ids: np.ndarray) -> np.ndarray:
        """Where in token_ids, int32 [T], a control token stands: int64 [K], ascending."""
        return np.flatnonzero(self._is_control[token_ids])

    @functools.cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """The tokenizer with renamed control tokens. Raises ConfigError where they cannot be renamed."""
        try:
            encoder = _renamed(msgspec.json.decode(self._definition), self._characters, self.mark)
            _require_same_ids(encoder, self._ids)
        except Exception as error:  # the library raises nothing more precise
            fact = f"its control tokens cannot be told from text ({error})"
            raise ConfigError(problem(self._place, fact, "use another tokenizer")) from error
        return encoder

    @functools.cached_property
    def _continuing_encoder(self) -> tokenizers.Tokenizer:
        """The encoder without the space that some tokenizers put before every stretch of plain text."""
        definition = msgspec.json.decode(self._definition)
        parts = {name: _continuing(definition.get(name)) for name in ("normalizer", "pre_tokenizer")}
        if all(definition.get(name) == part for name, part in parts.items()):
            return self._encoder
        return _renamed(definition | parts, self._characters, self.mark)

    @functools.cached_property
    def _is_control(self) -> np.ndarray:
        """For every id, whether it is a control token's: bool [V]."""
        is_control = np.zeros(max(self._encoder.get_vocab().values()) + 1, bool)
        # The unknown token stands for any character the vocabulary lacks, so a message may bring it forth.
        is_control[[i for i in self._ids.values() if i != self._unknown_id]] = True
        return is_control

    def _admit(
        self, parts: Sequence[str], begin: int, source: Source, start: int
    ) -> tuple[list[MessageRun], list[int]]:
        """The runs of message text whose every second part becomes a control token, and where these stand."""
        runs: list[MessageRun] = []
        places: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                places.append(begin)
            if part:
                length = 1 if number % 2 else len(part)
                end = start if start == UNPLACED else start + len(part)
                runs.append(MessageRun(begin, length, source, start, end))
                begin, start = begin + length, end
        return runs, places

    def _encode_behind(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Ids and spans of the tokens of a text as it stands behind other text; the mark holds its place."""
        own = self._own_text.search(text)
        is_other = self._continuing_encoder is not self._encoder
        end = own.start() if own is not None and is_other else len(text)
        head = self._continuing_encoder.encode(self.mark + text[:end], add_special_tokens=False)
        tail = self._encoder.encode(text[end:], add_special_tokens=False)
        tokens = [(token_id, (b - 1, e - 1)) for token_id, (b, e) in zip(head.ids, head.offsets, strict=True)]
        return [
            *tokens[1:],
            *(
                (token_id, (b + end, e + end))
                for token_id, (b, e) in zip(tail.ids, tail.offsets, strict=True)
            ),
        ]

    def _neutralise_region(self, text: str) -> tuple[str, tuple[int, ...]]:
        replaced = self._control_text.sub(lambda match: self._characters[match.group()], text)
        return replaced, tuple(match.start() for match in self._own_text.finditer(replaced))


@functools.lru_cache(maxsize=64)
def _pattern_of(names: frozenset[str]) -> re.Pattern[str]:
    """Finds any of the names, the longest one that fits, as its one group."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _merged(runs: Iterable[Run]) -> list[Run]:
    """The runs and the marks between them; what the template wrote in several strokes becomes one run."""
    merged: list[Run] = []
    by_template = 0
    for run in runs:
        if run[1] is None and not is_mark(run):
            by_template += run[0]
        elif run[0] or run[1] is None:
            if by_template:
                merged.append((by_template, None, 0))
            merged.append(run)
            by_template = 0
    return [*merged, (by_template, None, 0)] if by_template else merged


def unknown_id_of(model: Mapping[str, Any]) -> int | None:
    """The id for what the vocabulary lacks; a Unigram model names the id, the others the token."""
    return model["unk_id"] if "unk_id" in model else vocabulary_of(model).get(model.get("unk_token") or "")


def _renamed(definition: dict[str, Any], characters: Mapping[str, str], mark: str) -> tokenizers.Tokenizer:
    """The tokenizer with its control tokens renamed and the mark as its last token."""
    model = definition["model"]
    added = definition["added_tokens"]
    token_ids = [*vocabulary_of(model).values(), *(token["id"] for token in added)]
    _rename_in_model(model, characters)
    for token in added:
        token["content"] = characters.get(token["content"], token["content"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": max(token_ids) + 1, "content": mark, "special": True, **flags})
    definition |= {"post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_buffer(msgspec.json.encode(definition))


def _continuing(part: Any) -> Any:
    """A normalizer or pre-tokenizer of a tokenizer.json that puts no space before a text."""
    if isinstance(part, list):
        listed = [_continuing(entry) for entry in cast(list[Any], part)]
        return [entry for entry in listed if entry is not None]
    if not isinstance(part, dict):
        return part
    entries = cast(dict[str, Any], part)
    if entries.get("type") == "Prepend":
        return None
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return {name: never[name] if name in never else _continuing(value) for name, value in entries.items()}


def _require_same_ids(encoder: tokenizers.Tokenizer, ids: Mapping[str, int]) -> None:
    for character, token_id in ids.items():
        if encoder.token_to_id(character) != token_id:
            raise ValueError(f"token {token_id} does not keep its id under another name")


def _rename_in_model(model: dict[str, Any], characters: Mapping[str, str]) -> None:
    if characters.keys().isdisjoint(vocabulary_of(model)):
        return
    renamed = {characters.get(piece, piece): token_id for piece, token_id in vocabulary_of(model).items()}
    if isinstance(model["vocab"], list):
        scores = [score for _, score in cast(list[tuple[str, float]], model["vocab"])]
        model["vocab"] = list(zip(renamed, scores, strict=True))
    else:
        model["vocab"] = renamed
    if model.get("unk_token"):
        model["unk_token"] = characters.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        touched = [not characters.keys().isdisjoint((left, right, left + right)) for left, right in parts]
        model["merges"] = [pair for pair, is_touched in zip(parts, touched, strict=True) if not is_touched]
