"""The values that travel through the data stages, from what stands in a file to what is trained."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]

IGNORED_LABEL = -100
"""What stands for a position without target where labels, not loss weights, are asked for."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record stands: the file and the line it begins on, counted from 1.

    In files without lines (Parquet, HDF5, …) `line` is the number of the row or document.
    """

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
    """One turn of a conversation.

    name, tool_call_id: who speaks, or which call a tool answers; for templates that write them
    loss_weight:        of an assistant turn's targets; 0 makes the turn context only
    text_with_reasoning: the text as the record has it, where reasoning_content was split off a leading
                        <think>…</think>; what a template that writes no reasoning_content is given
    """

    role: Role
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    loss_weight: float = 1.0
    text_with_reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """What every format of messages becomes: messages, tools, origin."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text without roles, all of which is trained."""

    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """Tokens that somebody else encoded and masked; they are trained as given.

    token_ids:    int32 [T]
    loss_weights: float32 [T], 0 where the token is context only; loss_weights[0] is always 0
    """

    token_ids: np.ndarray
    loss_weights: np.ndarray
    origin: Origin


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
