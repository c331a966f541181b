"""The dev share is a pure function of content and seed, and leaves no side empty."""

from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.data.ledger import Item
from finetooth.data.records import Conversation, Message, Origin, Record
from finetooth.data.sources.reading import BadLine
from finetooth.data.split import dev_threshold, group_of, split_key


def group(number: int) -> bytes:
    return f"question {number}".encode()


def dev_part(groups: list[bytes], share: float, seed: int) -> list[bytes]:
    threshold = dev_threshold(groups, share, seed=seed)
    return [g for g in groups if split_key(g, seed=seed) < threshold]


def item(prompt: str, response: str) -> Item:
    return Conversation((Message("user", prompt), Message("assistant", response)), Origin("t", 1))


def test_the_key_is_of_content_and_seed_only():
    assert split_key(group(1), seed=7) != split_key(group(1), seed=8)
    assert split_key(group(1), seed=7) != split_key(group(2), seed=7)
    assert 0 <= split_key(group(1), seed=7) < 2**64


def test_records_with_the_same_prompt_are_one_group():
    first = Record(Origin("t", 1), {"prompt": "a", "response": "b"})
    other = Record(Origin("u", 2), {"prompt": "a ", "response": "c"})
    assert group_of(first, item("a", "b"), "prompt") == group_of(other, item("a ", "c"), "prompt")
    assert group_of(first, item("a", "b"), "prompt") != group_of(first, item("b", "b"), "prompt")


def test_records_with_the_same_field_are_one_group():
    first = Record(Origin("t", 1), {"prompt": "a", "topic": {"x": 1, "y": 2}})
    second = Record(Origin("t", 2), {"topic": {"y": 2, "x": 1}})
    assert group_of(first, None, "topic") == group_of(second, None, "topic")
    assert group_of(first, None, "prompt") != group_of(second, None, "prompt")
    assert group_of(first, None, "author") is None


def test_what_was_not_understood_is_a_group_by_itself():
    lines = [BadLine(Origin("t", line), "broken") for line in (1, 2)]
    assert group_of(lines[0], None, "prompt") != group_of(lines[1], None, "prompt")


@settings(deadline=None)
@given(
    numbers=st.sets(st.integers(0, 50), min_size=2, max_size=12),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_side_is_ever_empty(numbers: set[int], share: float, seed: int):
    records = [group(number) for number in numbers]
    assert 1 <= len(dev_part(records, share, seed)) < len(records)


def test_the_same_records_stay_together_in_train():
    assert dev_part([group(1), group(1)], 0.5, 1) == []
    assert dev_part([group(1)], 0.999, 1) == []
    assert dev_part([], 0.5, 1) == []


def test_the_share_is_kept_and_records_stay_on_their_side():
    records = [group(number) for number in range(4000)]
    dev = dev_part(records, 0.1, 42)
    assert 330 < len(dev) < 470  # 400 expected, standard deviation 19
    more = dev_part([*records, *(group(number) for number in range(4000, 5000))], 0.1, 42)
    assert more[: len(dev)] == dev
    assert dev_part(records, 0.1, 43) != dev


def test_no_more_records_are_read_than_needed():
    records = iter([group(number) for number in range(4000)])
    dev_threshold(records, 0.5, seed=1)
    assert len(list(records)) > 3900
