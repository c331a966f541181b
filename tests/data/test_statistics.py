"""The figures of what was kept are those of its documents and messages."""

import numpy as np

from finetooth.data.ledger import Outcome
from finetooth.data.records import Conversation, Document, Message, Origin, PlainText, Record
from finetooth.data.statistics import Statistics, merged

ORIGIN = Origin("t", 1)


def document(length: int, num_targets: int) -> Document:
    weights = np.zeros(length, np.float32)
    weights[length - num_targets :] = 0.5
    return Document(np.zeros(length, np.int32), weights, 1, ORIGIN)


def outcome(roles: str, *sizes: tuple[int, int]) -> Outcome:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = tuple(Message(names[role], "x") for role in roles)  # pyright: ignore[reportArgumentType]
    item = Conversation(messages, ORIGIN) if roles else PlainText("x", ORIGIN)
    return Outcome(Record(ORIGIN, {}), "kept", tuple(document(*size) for size in sizes), item)


def test_figures_are_those_of_the_documents():
    statistics = Statistics()
    statistics.add(outcome("sua", (10, 4)))
    statistics.add(outcome("uaua", (20, 2), (30, 10)))
    statistics.add(outcome("", (100, 99)))
    summary = statistics.summary()
    histogram = summary["lengths"].pop("histogram")
    assert summary == {
        "records": 3,
        "documents": 4,
        "tokens": 160,
        "targets": 115,
        "targets_share": 115 / 160,
        "lengths": {"mean": 40.0, "median": 25.0, "p95": 100, "max": 100},
        "turns": {"1": 1, "2": 1},
        "roles": {"assistant": 3, "system": 1, "user": 3},
    }
    assert histogram["edges"] == list(range(0, 101, 5))
    assert sum(histogram["counts"]) == 4
    assert histogram["counts"][-1] == 1


def test_nothing_has_figures_too():
    assert Statistics().summary() == {
        **dict.fromkeys(("records", "documents", "tokens", "targets"), 0),
        "targets_share": 0.0,
        "lengths": {},
        "turns": {},
        "roles": {},
    }


def test_parts_add_up():
    parts, whole = [Statistics(), Statistics()], Statistics()
    for number, each in enumerate([outcome("ua", (10, 4)), outcome("uaua", (7, 2)), outcome("ua", (3, 1))]):
        parts[number % 2].add(each)
        whole.add(each)
    assert merged(parts).summary() == whole.summary()
