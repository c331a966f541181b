"""Records that stand twice are found, those of dev in train too, each with the record it repeats."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.config.schema import DataConfig
from finetooth.data.ledger import Outcome, Split
from finetooth.data.quality import DoubleFinder, HashIndex, documents_hash, prompt_hash
from finetooth.data.records import Conversation, Document, GivenTokens, Message, Origin, PlainText, Record


def document(ids: list[int], *, weight: float = 1) -> Document:
    weights = np.full(len(ids), weight, np.float32)
    weights[0] = 0
    return Document(np.array(ids, np.int32), weights, 1, Origin("t", 1))


def outcome(line: int, prompt: str, ids: list[int], *, weight: float = 1) -> Outcome:
    origin = Origin("t.jsonl", line)
    item = Conversation((Message("user", prompt), Message("assistant", "yes")), origin)
    return Outcome(Record(origin, {}), "kept", (document(ids, weight=weight),), item)


def judged(
    outcomes: list[Outcome], splits: list[Split], *, portion: int = 100, **settings: str
) -> list[tuple[str, str | None, str | None]]:
    finder = DoubleFinder(DataConfig(train="t", dev="d", **settings))  # pyright: ignore[reportArgumentType]
    found: list[Outcome] = []
    for begin in range(0, len(outcomes), portion):
        found += finder.judge(outcomes[begin : begin + portion], splits[begin : begin + portion])
    return [(o.state, o.reason, None if o.same_as is None else str(o.same_as)) for o in found]


KEPT = ("kept", None, None)
DUPLICATE = "duplicate of an earlier record"


@pytest.mark.parametrize("portion", [1, 2, 100])
def test_the_later_of_equal_records_is_dropped(portion: int):
    outcomes = [
        outcome(1, "a", [5, 6]),
        outcome(2, "b", [5, 7]),
        outcome(3, "a", [5, 6]),
        outcome(4, "a", [5, 6], weight=0.5),
        outcome(5, "b", [5, 7]),
        outcome(6, "a", [5, 6]),
    ]
    assert judged(outcomes, ["train"] * 6, portion=portion) == [
        *(KEPT, KEPT, ("dropped", DUPLICATE, "t.jsonl:1"), KEPT),
        *(("dropped", DUPLICATE, "t.jsonl:2"), ("dropped", DUPLICATE, "t.jsonl:1")),
    ]
    assert judged(outcomes, ["train"] * 6, portion=portion, on_duplicate="keep") == [KEPT] * 6


def test_an_equal_record_is_an_error_where_the_settings_say_so():
    finder = DoubleFinder(DataConfig(train="t", on_duplicate="error"))
    first, second = finder.judge([outcome(1, "a", [5, 6]), outcome(2, "a", [5, 6])], ["train", "train"])
    assert not first.is_error
    assert second.is_error
    assert second.problem() == (
        "t.jsonl:2: duplicate of an earlier record (t.jsonl:1); "
        "remove one of them, or set data.on_duplicate to drop or keep"
    )


def test_what_was_not_kept_is_no_first_of_equals():
    dropped = Outcome(Record(Origin("t.jsonl", 1), {}), "dropped", (document([5, 6]),), reason="too long")
    assert judged([dropped, outcome(2, "a", [5, 6])], ["train"] * 2)[1] == KEPT


@pytest.mark.parametrize("portion", [1, 100])
def test_what_also_stands_in_dev_is_a_leak(portion: int):
    outcomes = [
        outcome(1, "a", [5, 6]),
        outcome(2, "a ", [5, 9]),  # the same prompt, another answer
        outcome(3, "b", [5, 6]),  # other text, the same tokens
        outcome(4, "b", [5, 8]),
    ]
    splits: list[Split] = ["dev", "train", "train", "train"]
    assert judged(outcomes, splits, portion=portion, on_leak="drop") == [
        KEPT,
        ("dropped", "leak: the same prompt as a record of dev", "t.jsonl:1"),
        ("dropped", "leak: the same documents as a record of dev", "t.jsonl:1"),
        KEPT,
    ]
    assert judged(outcomes, splits, portion=portion, on_leak="keep") == [KEPT] * 4
    with_train_first = judged(outcomes[:2], ["train", "dev"], portion=portion, on_leak="drop")
    assert with_train_first[1] == ("dropped", "leak: the same prompt as a record of train", "t.jsonl:1")


def test_a_leak_is_an_error_at_first():
    finder = DoubleFinder(DataConfig(train="t", dev="d"))
    _, leak = finder.judge([outcome(1, "a", [5, 6]), outcome(2, "a", [5, 7])], ["dev", "train"])
    assert leak.is_error
    assert leak.problem() == (
        "t.jsonl:2: leak: the same prompt as a record of dev (t.jsonl:1); "
        "remove one of them, or set data.on_leak to drop or keep"
    )


def test_what_a_share_parted_is_dropped_without_an_error():
    outcomes = [outcome(1, "a", [5, 6]), outcome(2, "other text", [5, 6])]
    for group_by, is_error in (("prompt", False), ("topic", True)):
        finder = DoubleFinder(DataConfig(train="t", dev=0.5, group_by=group_by))
        _, leak = finder.judge(outcomes, ["dev", "train"])
        assert (leak.state, str(leak.same_as), leak.is_error) == ("dropped", "t.jsonl:1", is_error)


def test_the_prompt_is_all_before_the_last_answer():
    origin = Origin("t", 1)

    def hashed(*turns: tuple[str, str], tools: tuple[dict[str, str], ...] = ()) -> bytes:
        messages = tuple(Message(role, text) for role, text in turns)  # pyright: ignore[reportArgumentType]
        return prompt_hash(Conversation(messages, origin, tools))

    base = hashed(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert base == hashed(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "other"))
    assert base == hashed(
        ("user", " a\n"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")
    )
    assert base != hashed(("user", "a"), ("assistant", "other"), ("user", "c"), ("assistant", "d"))
    assert base != hashed(("system", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert base != hashed(
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), tools=({"n": "x"},)
    )
    # where nothing stands before the answer, the whole counts
    assert hashed(("assistant", "b")) != hashed(("assistant", "c"))
    assert prompt_hash(PlainText("a", origin)) != prompt_hash(PlainText("b", origin))


def test_the_prompt_of_given_tokens_ends_where_the_last_targets_begin():
    def hashed(ids: list[int], weights: list[float]) -> bytes:
        return prompt_hash(
            GivenTokens(np.array(ids, np.int32), np.array(weights, np.float32), Origin("t", 1))
        )

    weights = [0, 0, 1, 0, 0, 1, 1]
    assert hashed([1, 2, 3, 4, 5, 6, 7], weights) == hashed([1, 2, 3, 4, 5, 8, 9], weights)
    assert hashed([1, 2, 3, 4, 5, 6, 7], weights) != hashed([1, 2, 9, 4, 5, 6, 7], weights)
    assert hashed([1, 2, 3], [0, 1, 1]) != hashed([1, 2, 4], [0, 1, 1])  # text: all of it counts


def test_boundaries_count():
    whole, parts = [document([5, 0, 6, 0])], [document([5, 0]), document([6, 0])]
    assert documents_hash(whole) != documents_hash(parts)


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=30))
def test_the_index_is_a_dictionary(portions: list[list[int]]):
    index, reference = HashIndex(), dict[bytes, int]()
    for count, portion in enumerate(portions):
        hashes = [number.to_bytes(1, "little") * 16 for number in portion]
        assert index.find(hashes).tolist() == [reference.get(each, -1) for each in hashes]
        index.add(hashes, [count] * len(hashes))
        for each in hashes:
            reference.setdefault(each, count)
    everything = list(reference)
    assert index.find(everything).tolist() == list(reference.values())


MEMORY = """
import json
import numpy as np
from finetooth.base.devices import peak_resident_bytes
from finetooth.data.quality import HashIndex
index, generator = HashIndex(), np.random.default_rng(1)
before = peak_resident_bytes()
for portion in range(400):
    hashes = [row.tobytes() for row in generator.integers(0, 256, (500, 16), np.uint8)]
    assert (index.find(hashes) == -1).all()
    index.add(hashes, range(500))
print(json.dumps((peak_resident_bytes() - before) / 1e6))
"""


def test_200_000_hashes_take_a_few_megabytes():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 30
