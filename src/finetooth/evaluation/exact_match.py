"""Lets the policy answer the prompts of documents and compares its answers with the documents' own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetooth.base.devices import DeviceManager
from finetooth.config.schema import Extractor
from finetooth.data.records import Document, DocumentSource
from finetooth.data.templates.template import Template
from finetooth.evaluation.answers import extract_answer, is_exact_match
from finetooth.evaluation.generation import ends_in_loop, generate
from finetooth.model.policy import PolicyModel


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt with what the policy wrote and what the record holds.

    extracted:  what of the written counts as the answer; None where nothing does
    num_tokens: how many tokens were written, without the stop token
    loops:      whether they end in a loop, as `ends_in_loop` says
    """

    origin: str
    prompt: str
    generated: str
    reference: str
    stopped: bool
    exact_match: bool
    extracted: str | None
    num_tokens: int
    loops: bool

    def as_line(self) -> dict[str, Any]:
        """What a line of `samples/*.jsonl` holds."""
        return asdict(self)


def answer_documents(
    policy: PolicyModel,
    documents: DocumentSource,
    *,
    numbers: Sequence[int],
    template: Template,
    extractor: Extractor,
    max_new_tokens: int,
    devices: DeviceManager,
    on_progress: Callable[[int], object] | None = None,
) -> list[Answered]:
    """Answers, greedily, the prompt of each document's last assistant turn.

    A prompt is the very ids that stand before the turn's targets. Documents without a prompt (plain
    text) are left out.
    """
    asked = [document for document in map(documents.document, numbers) if document.prompt_length]
    generations = generate(
        policy,
        [document.token_ids[: document.prompt_length].tolist() for document in asked],
        max_new_tokens=max_new_tokens,
        stop_token_ids=template.stop_token_ids,
        devices=devices,
        on_progress=on_progress,
    )
    decode = template.tokenizer.decode
    answered: list[Answered] = []
    for document, generation in zip(asked, generations, strict=True):
        generated = decode(list(generation.token_ids))
        reference = decode(_reference_ids(document, template))
        answered.append(
            Answered(
                origin=str(document.origin),
                prompt=decode(document.token_ids[: document.prompt_length].tolist()),
                generated=generated,
                reference=reference,
                stopped=generation.stopped,
                exact_match=is_exact_match(generated, reference, extractor),
                extracted=extract_answer(generated, extractor),
                num_tokens=len(generation.token_ids),
                loops=ends_in_loop(generation.token_ids),
            )
        )
    return answered


def answer_figures(answered: Sequence[Answered]) -> dict[str, float]:
    """exact_match, stop_rate, loop_rate: shares of the answers; mean_answer_tokens; num_answers.

    All are 0 where nothing was asked.
    """
    return {
        "exact_match": share(answered, "exact_match"),
        "stop_rate": share(answered, "stopped"),
        "loop_rate": share(answered, "loops"),
        "mean_answer_tokens": sum(answer.num_tokens for answer in answered) / max(1, len(answered)),
        "num_answers": len(answered),
    }


def share(answered: Sequence[Answered], field: str) -> float:
    """The share of answers for which `exact_match`, `stopped` or `loops` holds; 0 where nothing was asked."""
    return sum(getattr(answer, field) for answer in answered) / max(1, len(answered))


def _reference_ids(document: Document, template: Template) -> list[int]:
    """The targets of the last turn, without the stop token that ends them."""
    ids = document.token_ids[document.prompt_length :]
    trained = ids[document.loss_weights[document.prompt_length :] > 0].tolist()
    while trained and trained[-1] in template.stop_token_ids:
        trained.pop()
    return trained
