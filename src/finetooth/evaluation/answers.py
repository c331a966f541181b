"""Exact match: what counts as the answer of a generated text, and when two answers are equal."""

import re
from typing import Literal

Extractor = Literal["answer-tag", "plain"]

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\$?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")


def extract_answer(text: str, extractor: Extractor) -> str | None:
    """The answer in a text, or None where there is none.

    answer-tag: what stands in the last `<answer>…</answer>`; numbers are compared without `$`, thousands
                separators and a fraction of zeros. plain: the whole text. Both without white space around.

    >>> extract_answer("48/2 = 24\\n<answer>$1,072.00</answer>", "answer-tag")
    '1072'
    >>> extract_answer(" The capital of Peru is Lima.\\n", "plain")
    'The capital of Peru is Lima.'
    """
    if extractor == "plain":
        return text.strip()
    tags = _ANSWER_TAG.findall(text)
    return _plain_number(tags[-1].strip()) if tags else None


def is_exact_match(generated: str, reference: str, extractor: Extractor) -> bool:
    """Whether both texts hold an answer and the answers are equal."""
    answer = extract_answer(generated, extractor)
    return answer is not None and answer == extract_answer(reference, extractor)


def _plain_number(answer: str) -> str:
    """The number without its decoration; other answers as they are."""
    if not _NUMBER.fullmatch(answer):
        return answer
    digits = answer.replace("$", "").replace(",", "").removeprefix("+")
    whole, _, fraction = digits.partition(".")
    fraction = fraction.rstrip("0")
    sign, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    whole = whole.lstrip("0") or "0"
    return sign + whole + ("." + fraction if fraction else "")
