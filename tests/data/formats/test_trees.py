"""Of a tree of messages the best path is the conversation, and the other replies are named."""

from typing import Any

import pytest
from tests.records import messages_of, read, refusal, unread

from finetooth.data.records import Message


def node(role: str, text: str, *replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **fields}


def contents(fields: dict[str, Any]) -> list[str]:
    return [message.content for message in messages_of(fields, "oasst")]


def test_the_best_ranked_replies_are_followed():
    tree = node(
        "prompter",
        "q",
        node("assistant", "worse", rank=1),
        node(
            "assistant",
            "best",
            node("prompter", "first", node("assistant", "a", rank=None), node("assistant", "b")),
            node("prompter", "second"),
            rank=0,
        ),
        node("assistant", "unranked", rank=None),
    )
    for fields in ({"prompt": tree, "tree_state": "ready_for_export"}, tree):
        assert read(fields).messages == (
            Message("user", "q"),
            Message("assistant", "best"),
            Message("user", "first"),
            Message("assistant", "a"),
        )
    assert unread({"prompt": tree}) == ["replies that are not on the best path"]


def test_a_path_may_end_with_a_question():
    assert contents(node("prompter", "q", node("assistant", "a", node("prompter", "more")))) == [
        "q",
        "a",
        "more",
    ]


@pytest.mark.parametrize(
    "removed",
    [
        {"deleted": True},
        {"review_result": False},
        {"labels": {"spam": {"value": 0.5, "count": 2}, "quality": {"value": 0.75}}},
    ],
)
def test_removed_replies_are_not_followed(removed: dict[str, Any]):
    tree = node(
        "prompter", "q", node("assistant", "bad", rank=0, **removed), node("assistant", "good", rank=1)
    )
    assert contents(tree) == ["q", "good"]
    assert unread(tree, "oasst") == ["replies that are not on the best path"]
    # the control: without the mark it is the best
    tree["replies"][0] = node("assistant", "bad", rank=0, deleted=False, labels={"spam": {"value": 0.4}})
    assert contents(tree) == ["q", "bad"]


def test_a_single_path_passes_over_its_details_only():
    reply = node("assistant", "a", rank=0, deleted=False, review_result=True, user_id="u", lang="en")
    tree = {"message_tree_id": "t", "prompt": node("prompter", "q", reply, message_id="m")}
    assert unread(tree) == ["message_tree_id", "prompt.message_id", "replies.lang", "replies.user_id"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"message_id": "m", "parent_id": "p", "text": "a", "role": "assistant"},
            "one message of a tree by itself, which does not hold its replies; "
            "use the file of whole trees, or join messages by parent_id beforehand",
        ),
        ({"prompt": node("prompter", "q")}, "no assistant turn; add an answer or remove the record"),
        (
            {"prompt": node("prompter", "q", deleted=True)},
            "its first message was deleted or is spam; remove the record",
        ),
        (
            node("bot", "q"),
            "message 0 of its best path: unknown role 'bot'; use prompter or assistant",
        ),
        (
            node("prompter", "q", node("assistant", " ")),
            "message 1 of its best path: empty answer; write an answer or remove the record",
        ),
        (
            node("prompter", "q", node("assistant", 4)),  # pyright: ignore[reportArgumentType]
            "replies.text is a number instead of a text; write it as a text",
        ),
        (
            node("prompter", "q") | {"replies": [4]},
            "a reply that is no object; write replies as a list of objects",
        ),
        (
            node("prompter", "q") | {"replies": {"a": 1}},
            "'replies' is an object instead of a list; write it as a list",
        ),
        (
            node("prompter", "q", node("assistant", "a", deleted="no")),
            "a message whose 'deleted' or 'review_result' is neither true nor false; write true or false",
        ),
        (
            node("prompter", "q", node("assistant", "a", rank="best")),
            "a reply whose rank is a text; write ranks as numbers, 0 for the best",
        ),
    ],
)
def test_each_refusal_in_full(fields: dict[str, Any], expected: str):
    assert refusal(fields) == expected
