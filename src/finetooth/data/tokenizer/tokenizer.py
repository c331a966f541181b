"""A tokenizer without transformers, to which the text of a message is never a control token."""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.data.tokenizer.files import (
    SPECIAL_TOKEN_NAMES,
    TOKEN_FLAGS,
    TokenizerFiles,
    read_tokenizer_files,
    vocabulary_of,
)
from finetooth.data.tokenizer.twin import BLOCKS, Twin, unknown_id_of

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def load_tokenizer(name_or_folder: str, *, place: str = "model.tokenizer") -> "Tokenizer":
    """Loads the tokenizer of a folder or hub repository; the local cache comes before the network.

    place: the setting the name stands in, for messages. Raises ConfigError where no tokenizer can be had.

    >>> load_tokenizer("tokenizers/qwen3").eos_token   # doctest: +SKIP
    '<|im_end|>'
    """
    return Tokenizer(read_tokenizer_files(name_or_folder, place), place=place)


def as_tokenizer(tokenizer: Any) -> "Tokenizer":
    """A Tokenizer itself, that of a folder or hub name, or a fast tokenizer of transformers taken over.

    Raises ConfigError for what gives none.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, str | Path):
        return load_tokenizer(str(tokenizer), place="tokenizer")
    return Tokenizer.from_transformers(tokenizer)


class UnencodableError(ValueError):
    """Text that cannot be encoded without loss or confusion; says why, and what to do."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Tokenizer:
    """A tokenizer as its files define it; nothing of it changes after it is made.

    folder:         where its files are; None for one taken over from transformers
    definition:     its tokenizer.json, without truncation and padding
    chat_template:  its own template, or None
    named_templates: further templates of its own, by name: {"tool_use": …}
    special_tokens: by name, as a template sees them: {"eos_token": "<|im_end|>"}
    control_tokens: ids by text of its added tokens, without those that are whitespace only
    vocab_size:     how many tokens it has, added ones included
    largest_id:     the largest id it gives
    given_tokens:   names of the control tokens that its files do not have; `with_tokens` gave it them

    bos_token, eos_token and pad_token, and their ids, are None where the tokenizer has none.
    """

    def __init__(
        self, files: TokenizerFiles, *, place: str = "model.tokenizer", given_tokens: Sequence[str] = ()
    ):
        definition: dict[str, Any] = {**files.definition, "truncation": None, "padding": None}
        added: dict[str, int] = {token["content"]: token["id"] for token in definition["added_tokens"]}
        token_ids = {*vocabulary_of(definition["model"]).values(), *added.values()}
        self.folder = files.folder
        self.definition = msgspec.json.encode(definition)
        self._decoding_definition = msgspec.json.encode(_without_merges(definition))
        self.chat_template = files.chat_template
        self.named_templates = dict(files.named_templates)
        self.special_tokens = dict(files.special_tokens)
        self.control_tokens = {text: token_id for text, token_id in added.items() if text.strip()}
        self.vocab_size = len(token_ids)
        self.largest_id = max(token_ids)
        self.given_tokens = tuple(given_tokens)
        self.bos_token, self.bos_token_id = self._special("bos_token")
        self.eos_token, self.eos_token_id = self._special("eos_token")
        self.pad_token, self.pad_token_id = self._special("pad_token")
        swallowing = {token["content"] for token in definition["added_tokens"] if token.get("rstrip")}
        self._swallowing = swallowing & self.control_tokens.keys()
        self._unknown_id = unknown_id_of(definition["model"])
        self._twin = functools.cache(self._make_twin)
        self._keeper = files.keeper
        self._place = place

    @classmethod
    def from_transformers(cls, tokenizer: Any) -> "Tokenizer":
        """Takes over a fast tokenizer of transformers, as it is now.

        Raises ConfigError for one that has no tokenizers backend.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            fact = f"a {type(tokenizer).__name__} has no backend of the tokenizers library"
            raise ConfigError(problem("tokenizer", fact, "pass a fast tokenizer, or the folder of one"))
        template: str | dict[str, str] | None = tokenizer.chat_template
        templates = template if isinstance(template, dict) else {"default": template}
        named = {name: getattr(tokenizer, name) for name in SPECIAL_TOKEN_NAMES}
        files = TokenizerFiles(
            definition=json.loads(backend.to_str()),
            special_tokens={name: str(text) for name, text in named.items() if text is not None},
            chat_template=templates.get("default"),
            named_templates={name: text for name, text in templates.items() if text and name != "default"},
        )
        return cls(files, place="tokenizer")

    def with_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """This tokenizer with further control tokens, whose ids follow its largest one in the order given.

        A name that is in its vocabulary as plain text keeps the id it has there.
        """
        definition = msgspec.json.decode(self.definition)
        vocabulary = vocabulary_of(definition["model"])
        free_ids = itertools.count(self.largest_id + 1)
        definition["added_tokens"] += [
            {**TOKEN_FLAGS, "id": vocabulary[name] if name in vocabulary else next(free_ids), "content": name}
            for name in names
        ]
        files = TokenizerFiles(
            definition=definition,
            special_tokens=self.special_tokens,
            chat_template=self.chat_template,
            named_templates=self.named_templates,
            folder=self.folder,
            keeper=self._keeper,
        )
        return Tokenizer(files, place=self._place, given_tokens=(*self.given_tokens, *names))

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer itself, in which a control token's text is a control token wherever it stands."""
        return self._built(self.definition)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides which ids a text gets."""
        special_tokens = msgspec.json.encode(self.special_tokens, order="sorted")
        return hashlib.sha256(self.definition + special_tokens).hexdigest()

    @functools.cached_property
    def leading_tokens(self) -> tuple[str, ...]:
        """What the tokenizer itself puts before a text: its BOS token, or nothing."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        whole = self.backend.encode("a", add_special_tokens=True).ids
        num_leading = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        texts = {token_id: text for text, token_id in self.control_tokens.items()}
        return tuple(texts[token_id] for token_id in whole[:num_leading])

    @functools.cached_property
    def leading_text(self) -> str:
        """What has to stand before a text so that, encoded as it is, it begins as the tokenizer begins one.

        Its leading tokens; and a space where a first word has another token behind them than it has alone.
        """
        leading = "".join(self.leading_tokens)
        wanted = self.backend.encode("a").ids
        is_same = self.backend.encode(f"{leading}a", add_special_tokens=False).ids == wanted
        with_space = self.backend.encode(f"{leading} a", add_special_tokens=False).ids
        return leading if is_same or with_space != wanted else f"{leading} "

    def twin_for(self, texts: Sequence[str]) -> Twin:
        """An encoder that takes no character of these texts for its own.

        Raises UnencodableError where neither of two does, or a text is none (holds half a surrogate pair).
        """
        if any(map(_HALF_CHARACTER.search, texts)):
            raise UnencodableError("it holds half a surrogate pair, which is no character", "remove it")
        for first_character in BLOCKS:
            twin = self._twin(first_character)
            if not any(map(twin.holds_own_characters, texts)):
                return twin
        reason = "it holds private-use characters of both planes that stand for control tokens"
        raise UnencodableError(reason, "remove the characters from U+F0000 on")

    def encode_text(self, text: str) -> list[int]:
        """Token ids of message text: nothing added, and none of them a control token, whatever the text is.

        Raises DataError for text that holds half a surrogate pair, or private-use characters of both planes.
        """
        try:
            return self.twin_for([text]).encode_batch([text])[0].tolist()
        except UnencodableError as error:
            raise DataError(problem("text", error.reason, error.remedy)) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included."""
        return self._decoder.decode(list(token_ids), skip_special_tokens=False)

    @functools.cached_property
    def _decoder(self) -> tokenizers.Tokenizer:
        """The tokenizer without what only encoding needs, which takes most of the time it is built in."""
        return self._built(self._decoding_definition)

    def _built(self, definition: bytes) -> tokenizers.Tokenizer:
        """What the library makes of a definition; raises ConfigError for one that it does not take."""
        try:
            return tokenizers.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises nothing more precise
            name = "tokenizer" if self.folder is None else self.folder / "tokenizer.json"
            fact, remedy = f"{name}: {error}", "repair or replace the file"
            raise ConfigError(problem(self._place, fact, remedy)) from error

    def _make_twin(self, first_character: int) -> Twin:
        return Twin(
            self.definition,
            self.control_tokens,
            swallowing=self._swallowing,
            unknown_id=self._unknown_id,
            first_character=first_character,
            place=self._place,
        )

    def _special(self, name: str) -> tuple[str | None, int | None]:
        text = self.special_tokens.get(name)
        return text, None if text is None else self.control_tokens[text]


def _without_merges(definition: dict[str, Any]) -> dict[str, Any]:
    model = definition["model"]
    return {**definition, "model": {**model, "merges": []}} if "merges" in model else definition
