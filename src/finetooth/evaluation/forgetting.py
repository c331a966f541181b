"""How far a policy has moved from what another one says: what it makes of the other's greedy answers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetooth.batching.packing import Layout
from finetooth.data.records import Document, Origin
from finetooth.data.store import ContentHashes
from finetooth.evaluation.document_losses import measure_documents
from finetooth.evaluation.speaker import Speaker

_ROW_TOKENS = 2048
_PLACE = "prompt"


def answer_losses(
    speaker: Speaker, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[float | None]:
    """The mean cross-entropy per token, in nats, that a speaker gives to answers behind its own prompts.

    prompts: as ids, none empty; answers: as ids without a stop token. None for an empty answer, and for one
    that the speaker cannot be given: with a token or a position for which it has no embedding.
    """
    config = speaker.policy.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    asked = [
        number
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if answer and max(answer) < speaker.policy.vocab_size and len(prompt) + len(answer) <= positions
    ]
    if not asked:
        return [None] * len(answers)
    documents = _Documents([_document(number, prompts[number], answers[number]) for number in asked])
    longest = int(documents.lengths.max())
    layout = Layout(packing=speaker.policy.why_not_packed is None, row_tokens=max(_ROW_TOKENS, longest))
    measured = measure_documents(
        speaker.policy, documents, numbers=range(len(asked)), layout=layout, devices=speaker.devices
    )
    losses = {number: measured.over([place]).loss for place, number in enumerate(asked)}
    return [losses.get(number) for number in range(len(answers))]


def mean_moved(moved: Sequence[float | None]) -> float | None:
    """The mean over the answers that have a figure; None where none has."""
    known = [each for each in moved if each is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class _Documents:
    """Documents in memory, as a DocumentSource."""

    documents: list[Document]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(document.token_ids) for document in self.documents], np.int64)

    @property
    def num_targets(self) -> np.ndarray:
        return np.array([document.num_targets for document in self.documents], np.int64)

    @property
    def loss_weight_totals(self) -> np.ndarray:
        return self.num_targets.astype(np.float64)

    @property
    def fingerprint(self) -> str:
        hashes = ContentHashes()
        for document in self.documents:
            hashes.add_document(document)
        return hashes.fingerprint()

    def document(self, number: int, /) -> Document:
        return self.documents[number]


def _document(number: int, prompt: Sequence[int], answer: Sequence[int]) -> Document:
    token_ids = np.array([*prompt, *answer], np.int32)
    loss_weights = (np.arange(len(token_ids)) >= len(prompt)).astype(np.float32)
    return Document(token_ids, loss_weights, len(prompt), Origin(_PLACE, number + 1))
