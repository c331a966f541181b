"""The values that travel through the data stages: Record, Message, Conversation, Document, DocumentSource."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]

IGNORED_LABEL = -100
"""What stands for a position without target where labels, not loss weights, are asked for."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record stands: the file and the line it begins on, counted from 1."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a source file, as read."""

    origin: Origin
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What every format becomes: messages, tools, origin."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """One rendered conversation, ready to be trained.

    token_ids:    int32 [T]
    loss_weights: float32 [T]; the weight of the loss with which token t is predicted from the tokens
                  before it, 0 = context only. loss_weights[0] is always 0: nothing predicts it.

    prompt_length: how many leading tokens are what the model is given in use before it writes the
                  last assistant turn (history and generation prompt).

        token_ids    = [ 7, 3, 9, 4, 2]      prompt 7 3 9, answer 4, stop token 2; prompt_length = 3
        loss_weights = [ 0, 0, 0, 1, 1]
    """

    token_ids: np.ndarray
    loss_weights: np.ndarray
    prompt_length: int
    origin: Origin

    @property
    def num_targets(self) -> int:
        """How many tokens are trained."""
        return int(np.count_nonzero(self.loss_weights))


class DocumentSource(Protocol):
    """Numbered documents whose sizes are known beforehand: a store, a data set, or a part of one."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [S], tokens per document."""
        ...

    @property
    def loss_weight_totals(self) -> np.ndarray:
        """float64 [S], the sum of each document's loss weights."""
        ...

    @property
    def num_targets(self) -> np.ndarray:
        """int64 [S], targets per document."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the contents: token ids, loss weights and boundaries, in order."""
        ...

    def document(self, number: int, /) -> Document:
        """The document with this number, counted from 0."""
        ...
