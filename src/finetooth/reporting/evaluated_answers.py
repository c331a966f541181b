"""The answers that `finetooth eval` wrote last, as a report shows them: some wrong ones, a few right ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetooth.reporting.numerals import figure, in_words, share
from finetooth.reporting.run_reading import Answer

_WRONG_SHOWN, _RIGHT_SHOWN = 12, 3


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer, and in words what of it was compared, how long it is, and how it ended."""

    answer: Answer
    told: str


@dataclass(frozen=True, slots=True)
class EvaluatedAnswers:
    """All answers in a sentence, and those that are shown."""

    told: str
    shown: list[ShownAnswer]


def evaluated_answers(answers: Sequence[Answer]) -> EvaluatedAnswers | None:
    """The view of answers in their order; None of none."""
    if not answers:
        return None
    wrong = [answer for answer in answers if not answer.exact_match]
    right = [answer for answer in answers if answer.exact_match]
    parts = [f"{in_words(len(answers), 'answer')}: {share(len(right) / len(answers))} right"]
    parts.append(f"{share(sum(answer.stopped for answer in answers) / len(answers))} stop by themselves")
    parts += [f"{loops:,} end in a loop"] if (loops := sum(answer.loops for answer in answers)) else []
    shown = [*wrong[:_WRONG_SHOWN], *right[:_RIGHT_SHOWN]]
    return EvaluatedAnswers(", ".join(parts), [ShownAnswer(answer, _told(answer)) for answer in shown])


def _told(answer: Answer) -> str:
    parts = [] if answer.stopped else ["did not stop"]
    parts += ["ends in a loop"] if answer.loops else []
    parts += [in_words(answer.num_tokens, "token")] if answer.num_tokens is not None else []
    parts += [f"loss of the record's answer {figure(answer.loss)}"] if answer.loss is not None else []
    parts += [f"compared: {answer.extracted}"] if answer.extracted not in (None, answer.generated) else []
    return " · ".join(parts)
