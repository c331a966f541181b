"""The dev share is a pure function of content and seed, and leaves no side empty."""

from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.data.records import Origin, Record
from finetooth.data.split import dev_threshold, split_key


def record(number: int, line: int = 1) -> Record:
    return Record(Origin("t.jsonl", line), {"prompt": f"question {number}", "response": "yes"})


def dev_part(records: list[Record], share: float, seed: int) -> list[Record]:
    threshold = dev_threshold(records, share, seed=seed)
    return [r for r in records if split_key(r, seed=seed) < threshold]


def test_the_key_is_of_content_and_seed_only():
    key = split_key(record(1), seed=7)
    assert key == split_key(record(1, line=9), seed=7)
    assert key == split_key(Record(Origin("u", 1), dict(reversed(record(1).fields.items()))), seed=7)
    assert key != split_key(record(1), seed=8)
    assert key != split_key(record(2), seed=7)
    assert 0 <= key < 2**64


@settings(deadline=None)
@given(
    numbers=st.sets(st.integers(0, 50), min_size=2, max_size=12),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_side_is_ever_empty(numbers: set[int], share: float, seed: int):
    records = [record(number) for number in numbers]
    assert 1 <= len(dev_part(records, share, seed)) < len(records)


def test_the_same_records_stay_together_in_train():
    assert dev_part([record(1), record(1)], 0.5, 1) == []
    assert dev_part([record(1)], 0.999, 1) == []
    assert dev_part([], 0.5, 1) == []


def test_the_share_is_kept_and_records_stay_on_their_side():
    records = [record(number) for number in range(4000)]
    dev = dev_part(records, 0.1, 42)
    assert 330 < len(dev) < 470  # 400 expected, standard deviation 19
    more = dev_part([*records, *(record(number) for number in range(4000, 5000))], 0.1, 42)
    assert more[: len(dev)] == dev
    assert dev_part(records, 0.1, 43) != dev


def test_no_more_records_are_read_than_needed():
    records = iter([record(number) for number in range(4000)])
    dev_threshold(records, 0.5, seed=1)
    assert len(list(records)) > 3900
