"""Records that share most of their word triples are found, exactly those, and the same ones every time."""

import builtins
import random
from typing import Any

import pytest

from finetooth.base.errors import ConfigError
from finetooth.config.schema import DataConfig
from finetooth.data.ledger import Outcome
from finetooth.data.near_duplicates import NearDuplicateFinder
from finetooth.data.records import Conversation, GivenTokens, Message, Origin, PlainText, Record

WORDS = [f"word{number}" for number in range(400)]


def outcome(line: int, text: str) -> Outcome:
    origin = Origin("t", line)
    item = Conversation((Message("user", text), Message("assistant", "yes")), origin)
    return Outcome(Record(origin, {}), "kept", item=item)


def judged(
    texts: list[str], *, on: str = "drop", similarity: float = 0.85, portion: int = 100
) -> list[Outcome]:
    settings: Any = {"on_near_duplicate": on, "near_duplicate_similarity": similarity}
    finder = NearDuplicateFinder(DataConfig(train="t", **settings))
    outcomes = [outcome(line, text) for line, text in enumerate(texts, start=1)]
    return [o for at in range(0, len(texts), portion) for o in finder.judge(outcomes[at : at + portion])]


def near_by_hand(texts: list[str], similarity: float) -> dict[int, int]:
    """By line, the first earlier line that was kept and shares so many of its triples."""
    kept: dict[int, set[tuple[str, ...]]] = {}
    found: dict[int, int] = {}
    for line, text in enumerate(texts, start=1):
        words = [*text.split(), "yes"]
        triples = set(zip(words, words[1:], words[2:], strict=False))
        near = [k for k, other in kept.items() if len(triples & other) / len(triples | other) >= similarity]
        if near:
            found[line] = near[0]
        else:
            kept[line] = triples
    return found


def variations(seed: int) -> list[str]:
    """Texts of which each is changed in a few words or in many, several times."""
    draw = random.Random(seed)
    texts: list[str] = []
    for _ in range(40):
        words = draw.choices(WORDS, k=draw.randint(20, 120))
        for _ in range(5):
            changed = list(words)
            for _ in range(draw.choice([0, 1, 2, 4, 20])):
                changed[draw.randrange(len(changed))] = draw.choice(WORDS)
            texts.append(" ".join(changed))
    draw.shuffle(texts)
    return texts


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.85, 0.95])
def test_they_are_those_that_comparing_all_pairs_finds(similarity: float):
    texts = variations(seed=1)
    found = {
        o.entry.origin.line: o.same_as.line
        for o in judged(texts, similarity=similarity)
        if o.state == "dropped" and o.same_as is not None
    }
    expected = near_by_hand(texts, similarity)
    assert len(expected) > 10
    assert found == expected


def test_portions_and_repetition_play_no_part():
    texts = variations(seed=2)
    first = judged(texts)
    assert judged(texts, portion=7) == first
    assert judged(texts) == first


def test_they_are_reported_or_dropped():
    text = " ".join(WORDS[:60])
    _, reported = judged([text, f"{text} more"], on="report")
    assert (reported.state, reported.reason, reported.same_as) == ("kept", None, Origin("t", 1))
    _, dropped = judged([text, f"{text} more"])
    assert dropped.problem() == (
        "t:2: almost equal to an earlier record (t:1); set data.on_near_duplicate to keep or report"
    )
    assert not dropped.is_error


def test_texts_of_a_word_or_two_and_texts_without_words_are_compared_as_they_are():
    origin = Origin("t", 1)
    finder = NearDuplicateFinder(DataConfig(train="t", on_near_duplicate="drop"))
    texts = ["...", "?!", "...", "yes", "no", "yes"]
    outcomes = [Outcome(Record(origin, {}), "kept", item=PlainText(text, origin)) for text in texts]
    states = [o.state for o in finder.judge(outcomes)]
    assert states == ["kept", "kept", "dropped", "kept", "kept", "dropped"]


def test_tokens_and_what_was_not_kept_are_left_alone():
    import numpy as np

    given = GivenTokens(np.array([1, 2], np.int32), np.array([0, 1], np.float32), Origin("t", 1))
    refused = Outcome(Record(Origin("t", 2), {}), "refused", reason="x")
    outcomes = [Outcome(given, "kept", item=given)] * 2 + [refused] * 2
    assert NearDuplicateFinder(DataConfig(train="t", on_near_duplicate="drop")).judge(outcomes) == outcomes


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch):
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "rensa":
            raise ImportError(name)
        return real_import(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError) as caught:
        NearDuplicateFinder(DataConfig(train="t", on_near_duplicate="report"))
    assert str(caught.value) == (
        "data.on_near_duplicate: almost equal records are found with a library that is not installed; "
        "pip install 'finetooth[neardup]', or write keep"
    )
