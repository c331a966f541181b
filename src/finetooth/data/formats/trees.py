"""The format `oasst`: a tree of messages, of which the best path becomes the conversation.

    {"prompt": {"text": "2+2?", "role": "prompter", "replies": [
        {"text": "5", "role": "assistant", "rank": 1, "replies": []},
        {"text": "4", "role": "assistant", "rank": 0, "replies": []}]}}

gives the question and the answer 4. The tree may also stand by itself, without `prompt` around it. At each
message the reply of the lowest rank is followed, the first where none has a rank. Replies that were deleted,
failed their review or are spam to half of their reviewers or more are not followed.
"""

from typing import Any, cast

from finetooth.data.formats.conversations import answer, conversation_of, question
from finetooth.data.formats.entry import Entry, UnfitError, is_empty, shortened
from finetooth.data.records import Conversation, Message, Origin
from finetooth.data.sources.reading import kind_of

NAMES = ("prompt", "system", "tools")
OTHER_REPLIES = "replies that are not on the best path"

_SPEAKERS = {"prompter": "user", "user": "user", "assistant": "assistant"}
_REPLIES = "replies"


def read_tree(root: Entry, origin: Origin) -> Conversation:
    """Reads a record of this format; the replies that are not followed are passed over."""
    node = root
    if root.peek("prompt") is not None:
        node = root.child(root.take("prompt"), root.inner("prompt"))
    elif root.peek("message_id") is not None and root.peek(_REPLIES) is None:
        fact = "one message of a tree by itself, which does not hold its replies"
        raise UnfitError(fact, "use the file of whole trees, or join messages by parent_id beforehand")
    if _is_removed(node):
        raise UnfitError("its first message was deleted or is spam", "remove the record")
    messages: list[Message] = []
    while node is not None:
        messages.append(_message(node, f"message {len(messages)} of its best path"))
        node = _best_reply(node)
    return conversation_of(root, origin, messages)


def _message(node: Entry, place: str) -> Message:
    role = node.take("role")
    if not isinstance(role, str) or role not in _SPEAKERS:
        raise UnfitError(f"{place}: unknown role {shortened(role)}", "use prompter or assistant")
    text = node.text("text")
    if _SPEAKERS[role] == "user":
        return question(text, place=place)
    return answer(text, place=place)


def _best_reply(node: Entry) -> Entry | None:
    replies = [] if is_empty(node.take(_REPLIES)) else node.list_of(_REPLIES)
    if any(not isinstance(reply, dict) for reply in replies):
        raise UnfitError("a reply that is no object", "write replies as a list of objects")
    eligible = [reply for reply in cast(list[dict[str, Any]], replies) if not _is_removed(Entry(reply))]
    if len(replies) > min(len(eligible), 1):
        node.skip(OTHER_REPLIES)
    if not eligible:
        return None
    best = node.child(min(eligible, key=_rank), _REPLIES)
    for name in ("rank", "deleted", "review_result"):
        best.take(name)
    return best


def _rank(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    if rank is None:
        return float("inf")
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise UnfitError(f"a reply whose rank is {kind_of(rank)}", "write ranks as numbers, 0 for the best")
    return rank


def _is_removed(node: Entry) -> bool:
    deleted, review_result = node.take("deleted"), node.take("review_result")
    if not isinstance(deleted, bool | None) or not isinstance(review_result, bool | None):
        fact = "a message whose 'deleted' or 'review_result' is neither true nor false"
        raise UnfitError(fact, "write true or false")
    if deleted or review_result is False:
        return True
    labels = node.peek("labels")
    spam = cast(dict[str, Any], labels).get("spam") if isinstance(labels, dict) else None
    share = cast(dict[str, Any], spam).get("value") if isinstance(spam, dict) else None
    return isinstance(share, int | float) and share >= 0.5
