"""Proves an exported chat template: what plain transformers renders with it is what was trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth.base.errors import DataError
from finetooth.config.schema import SFTConfig
from finetooth.data.masks.reasoning import fitted
from finetooth.data.preparation import PreparedData
from finetooth.data.records import Conversation, Document, Message
from finetooth.data.templates.template import Template, encode_prompt
from finetooth.reporting.mask_proof import render_again


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation, or what stands before its last answer, and the ids that were trained of it.

    request: what apply_chat_template is given
    """

    origin: str
    request: dict[str, Any]
    token_ids: tuple[int, ...]

    @property
    def is_prompt(self) -> bool:
        """Whether it ends before the answer."""
        return bool(self.request["add_generation_prompt"])


def renderings(
    prepared: PreparedData, config: SFTConfig, documents: Sequence[Document], *, split: str
) -> tuple[list[Rendering], int]:
    """Two renderings of each document of a conversation; and how many such documents have none.

    Those hold text that a plain tokenizer takes for control tokens, or end in no answer.
    """
    outcomes = render_again(prepared, config, documents, split=split)
    items = {str(outcome.entry.origin): outcome.item for outcome in outcomes}
    found: list[Rendering] = []
    num_passed_over = 0
    for document in documents:
        item = items.get(str(document.origin))
        if isinstance(item, Conversation):
            own = list(_renderings(document, item, prepared.template))
            num_passed_over += not own
            found += own
    return found, num_passed_over


def differing(
    expected: Sequence[Rendering], rendered: Sequence[Sequence[int]], template: Template
) -> tuple[list[str], int]:
    """Origins of what was rendered otherwise; and how many whole conversations have another seam.

    At a seam a plain tokenizer joins the end of the prompt and the beginning of the answer into one token;
    the text is the same, and the prompt's ids, which are given in use, are those of the training.
    """
    wrong: list[str] = []
    num_seams = 0
    for one, ids in zip(expected, rendered, strict=True):
        if list(ids) == list(one.token_ids):
            continue
        decode = template.tokenizer.decode
        if one.is_prompt or decode(ids) != decode(one.token_ids):
            wrong.append(one.origin)
        else:
            num_seams += 1
    return wrong, num_seams


def _renderings(document: Document, conversation: Conversation, template: Template) -> Iterator[Rendering]:
    """Its prompt and all of it, as plain transformers is asked for them."""
    if _holds_control_text(conversation, template):
        return
    messages = fitted(conversation.messages, template)
    ids = document.token_ids.tolist()
    tools = [dict(tool) for tool in conversation.tools] or None
    for end in _answers(messages):
        if _prompt_of(messages[:end], conversation, template) == ids[: document.prompt_length]:
            for stop, is_prompt in ((end, True), (end + 1, False)):
                listed = [_plain(message) for message in messages[:stop]]
                request = {"conversation": listed, "tools": tools, "add_generation_prompt": is_prompt}
                trained = ids[: document.prompt_length] if is_prompt else ids
                yield Rendering(str(document.origin), request, tuple(trained))
            return


def _answers(messages: Sequence[Message]) -> Iterator[int]:
    """Places of the answers, the last one first."""
    return (place for place in reversed(range(len(messages))) if messages[place].role == "assistant")


def _prompt_of(
    messages: Sequence[Message], conversation: Conversation, template: Template
) -> list[int] | None:
    try:
        return encode_prompt(template, messages, conversation.tools)
    except DataError:
        return None


def _plain(message: Message) -> dict[str, Any]:
    """A message as users of transformers write it."""
    optional = {
        "reasoning_content": message.reasoning_content,
        "tool_calls": [dict(call) for call in message.tool_calls] or None,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    present = {name: value for name, value in optional.items() if value is not None}
    return {"role": message.role, "content": message.content, **present}


def _holds_control_text(conversation: Conversation, template: Template) -> bool:
    """Whether some text reads as a control token, which training kept apart and plain tokenizers do not."""
    text = repr((conversation.messages, conversation.tools))
    return any(name in text for name in template.tokenizer.control_tokens)
