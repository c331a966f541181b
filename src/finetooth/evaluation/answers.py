"""Exact match: what counts as the answer of a generated text, and when two answers are equal."""

import json
import re
from collections.abc import Iterator
from typing import Any

from finetooth.config.schema import Extractor

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BEHIND_HASHES = re.compile(r"####(.*)")
_NUMBER = re.compile(r"[+-]?\$?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")


def extract_answer(text: str, extractor: Extractor) -> str | None:
    """The answer in a text, or None where there is none.

    answer-tag: what stands in the last `<answer>…</answer>`
    plain:      the whole text
    gsm8k:      what stands behind the last `####`, to the end of its line
    last-line:  the last line that is not blank
    regex:PATTERN  where PATTERN matches last: its first group, or all of it where it has none
    json:FIELD  the value of FIELD in the last JSON object of the text; as JSON, keys in order, if not text

    All without white space around. But for `plain`, an answer that is a number is written without `$`,
    thousands separators, zeros in front and a fraction of zeros.

    >>> extract_answer("48/2 = 24\\n<answer>$1,072.00</answer>", "answer-tag")
    '1072'
    >>> extract_answer(" The capital of Peru is Lima.\\n", "plain")
    'The capital of Peru is Lima.'
    >>> extract_answer("#### 1,072\\n", "gsm8k"), extract_answer("So:\\n\\nLima\\n", "last-line")
    ('1072', 'Lima')
    >>> extract_answer("It is 4, no, it is 5.", r"regex:it is (\\d+)"), extract_answer('{"a": 1.0}', "json:a")
    ('5', '1')
    """
    kind, _, detail = extractor.partition(":")
    match kind:
        case "plain":
            return text.strip()
        case "answer-tag":
            answer = _last_match(_ANSWER_TAG, text)
        case "gsm8k":
            answer = _last_match(_BEHIND_HASHES, text)
        case "last-line":
            answer = next((line for line in reversed(text.splitlines()) if line.strip()), None)
        case "regex":
            answer = _last_match(re.compile(detail), text)
        case _:
            assert kind == "json", "the settings allow no other"
            answer = _field(text, detail)
    return None if answer is None else _plain_number(answer.strip())


def is_exact_match(generated: str, reference: str, extractor: Extractor) -> bool:
    """Whether both texts hold an answer and the answers are equal."""
    answer = extract_answer(generated, extractor)
    return answer is not None and answer == extract_answer(reference, extractor)


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of the last match, or all of it where there is no group; None where none took part."""
    found: str | None = None
    for match in pattern.finditer(text):
        found = match[1] if pattern.groups else match[0]
    return found


def _field(text: str, field: str) -> str | None:
    """A field of the last JSON object, text as it is and other values as JSON."""
    value: Any = None
    for found in _json_objects(text):
        value = found.get(field)
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text that lie in no other, one after the other; what is broken is passed over."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
            yield found
        except (ValueError, RecursionError):  # no JSON here, or nested too deep to be read
            end = place + 1
        place = text.find("{", end)


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
