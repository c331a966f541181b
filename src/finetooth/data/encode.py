"""Encodes one conversation for library users, with the mask that training would use."""

import copy
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.data.formats.reading import BadRecord, to_conversation
from finetooth.data.masks.masking import MaskOptions, Refusal, render_documents
from finetooth.data.masks.reasoning import fitted
from finetooth.data.masks.turns import LossOn
from finetooth.data.records import Conversation, Document, Origin, Record
from finetooth.data.templates.template import encode_prompt, resolve_template
from finetooth.data.tokenizer.tokenizer import Tokenizer, as_tokenizer

_ORIGIN = Origin("messages", 1)
_taken_over: weakref.WeakKeyDictionary[Any, tuple[Any, Tokenizer]] = weakref.WeakKeyDictionary()


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: str = "auto",
    template_args: Mapping[str, Any] | None = None,
    loss_on: LossOn = "assistant",
    train_reasoning: bool = True,
    allow_tokens: Sequence[str] = (),
    add_generation_prompt: bool = False,
) -> list[Document]:
    """The documents of a conversation: token ids, and for each token the weight of its loss.

    tokenizer:             a fast tokenizer of transformers, a Tokenizer, or the folder or hub name of one
                           (read anew at every call)
    messages:              [{"role": "user", "content": "2+2?"}, …], with reasoning_content and tool_calls
    template:              auto, chatml, six-token, headers, concat, own:NAME or the path of a .jinja file
    template_args:         further variables for the template: {"enable_thinking": False}
    loss_on:               assistant (every assistant turn), last or all
    train_reasoning:       false leaves the reasoning of trained turns as context
    allow_tokens:          control tokens that text of the messages may become: ["<think>", "</think>"]
    add_generation_prompt: gives the prompt alone, all context, as a model sees it before it answers

    More than one document comes back where a template rewrites history. Raises DataError for messages that
    give no proved document, ConfigError for a tokenizer or template that cannot be used.

    >>> [document] = encode_chat(tokenizer, [user, assistant])             # doctest: +SKIP
    >>> document.token_ids                                                 # doctest: +SKIP
    array([151644,    872,    198,     17,     10,     17,     30, 151645,    198,
           151644,  77091,    198,     19, 151645,    198], dtype=int32)
    >>> document.loss_weights                                              # doctest: +SKIP
    array([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 1., 1., 0.], dtype=float32)
    """
    resolved = resolve_template(
        template, _tokenizer(tokenizer), template_args=template_args, allow_tokens=allow_tokens
    )
    if resolved.added_tokens:
        fact = f"{resolved.name} writes {' '.join(resolved.added_tokens)}, which the tokenizer lacks"
        remedy = "add them to it and to the model (tokenizer.add_tokens), or use another template"
        raise ConfigError(problem("template", fact, remedy))
    if add_generation_prompt:
        # A record needs an answer; what is put here in its place is taken away again.
        conversation = _conversation([*messages, {"role": "assistant", "content": "…"}], tools)
        history = fitted(conversation.messages[:-1], resolved)
        token_ids = encode_prompt(resolved, history, conversation.tools)
        return [_context(token_ids)]
    options = MaskOptions(loss_on=loss_on, train_reasoning=train_reasoning)
    [documents] = render_documents([_conversation(messages, tools)], resolved, options=options)
    if isinstance(documents, Refusal):
        raise DataError(problem("messages", documents.reason, documents.remedy))
    return list(documents)


def _conversation(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> Conversation:
    fields = {
        "messages": [dict(message) for message in messages],
        "tools": [dict(tool) for tool in tools or ()],
    }
    conversation = to_conversation(Record(_ORIGIN, fields), format="messages")
    if isinstance(conversation, BadRecord):
        raise DataError(problem("messages", conversation.fact, conversation.remedy))
    assert isinstance(conversation, Conversation), "messages are a conversation"
    return conversation


def _context(token_ids: Sequence[int]) -> Document:
    ids = np.array(token_ids, np.int32)
    return Document(ids, np.zeros(len(ids), np.float32), len(ids), _ORIGIN)


def _tokenizer(tokenizer: Any) -> Tokenizer:
    """Takes over from transformers once, and anew where that tokenizer has changed since."""
    if isinstance(tokenizer, Tokenizer | str | Path):
        return as_tokenizer(tokenizer)
    state = (len(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map)
    kept = _taken_over.get(tokenizer)
    if kept is None or kept[0] != state:
        kept = _taken_over[tokenizer] = (copy.deepcopy(state), as_tokenizer(tokenizer))
    return kept[1]
