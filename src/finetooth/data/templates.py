"""How messages become text: the tokenizer's own chat template, a built-in one, or a file."""

import difflib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, cast

import jinja2

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.data.provenance import Source, Traced, joined
from finetooth.data.records import Message
from finetooth.data.template_engine import RENDERING_ERRORS, compile_template, render_traced
from finetooth.data.tokenizer import Tokenizer, UnencodableError

PLACE = "data.template"
SYSTEM = -1  # the message index of the system text that data.system puts before a conversation
TOOLS: Source = (-2, "tools")

_NAMES_SHOWN = 5
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")


def resolve_template(
    name: str,
    tokenizer: Tokenizer,
    *,
    template_args: Mapping[str, Any] | None = None,
    system: str | None = None,
    allow_tokens: Sequence[str] = (),
    is_prompt_response: bool = False,
) -> "Template":
    """The template that `data.template: name` means for a tokenizer.

    name:               auto, chatml, concat or the path of a .jinja file; auto is the tokenizer's own
                        template, or without one concat for prompts and responses, chatml for messages
    template_args:      further variables for the template: {"enable_thinking": False}
    system:             system text for conversations that have none
    allow_tokens:       control tokens that text of messages may become
    is_prompt_response: whether the records are prompts and responses
    Raises ConfigError where the template cannot be used with this tokenizer.
    """
    arguments = dict(template_args or {})
    own = tokenizer.chat_template
    if name == "auto":
        name = "own" if own is not None else "concat" if is_prompt_response else "chatml"
    if name == "concat":
        _check_concat(tokenizer, arguments, system)
        text = None
    elif name == "own":
        text = own
    elif name == "chatml":
        _check_chatml(tokenizer)
        text = resources.files("finetooth.data").joinpath("builtin_templates/chatml.jinja").read_text("utf-8")
    else:
        text = _read_template(name)
    allowed_tokens = frozenset(allow_tokens)
    now = datetime.now().astimezone()
    return _checked(Template(name, text, tokenizer, arguments, system, now, allowed_tokens))


def encode_prompt(
    template: "Template", messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """What a model is given before it answers: the ids of the messages and the generation prompt.

    They are what training saw before its targets: the messages before an assistant turn give
    document.token_ids[:document.prompt_length]. Raises DataError where the template refuses the messages.
    """
    try:
        listed, listed_tools = template.variables(messages, tools)
        rendered = template.render(listed, listed_tools, add_generation_prompt=True)
        twin = template.tokenizer.twin_for([rendered])
    except UnencodableError as error:
        raise DataError(problem("prompt", error.reason, error.remedy)) from error
    except RENDERING_ERRORS as error:
        fact = f"the template refuses it: {error}"
        raise DataError(problem("prompt", fact, "change it, or use another template")) from error
    neutralised = twin.neutralise(rendered, allowed=template.allowed_tokens)
    return twin.encode_batch([neutralised.text])[0].tolist()


@dataclass(frozen=True, eq=False)
class Template:
    """A template made ready for one tokenizer.

    name:       own (the tokenizer's), chatml, concat, or the path of a file
    jinja_text: what chat_template.jinja of an exported folder holds; None for concat
    arguments:  further variables for the template
    system:     system text where a conversation has none
    now:        the time that strftime_now tells
    allowed_tokens: control tokens that text of messages may become
    """

    name: str
    jinja_text: str | None
    tokenizer: Tokenizer
    arguments: Mapping[str, Any]
    system: str | None
    now: datetime
    allowed_tokens: frozenset[str] = frozenset()

    def variables(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """Messages and tools as `render` takes them, their text traced.

        Where `system` has to be put before the messages, the list is longer by one.
        """
        listed = [_traced_message(index, message) for index, message in enumerate(messages)]
        if self.system is not None and all(message.role != "system" for message in messages):
            listed.insert(0, _traced_message(SYSTEM, Message("system", self.system)))
        return listed, cast(list[Any], _traced(list(tools), TOOLS)) if tools else None

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None, *, add_generation_prompt: bool
    ) -> Traced:
        """The text of messages; raises one of RENDERING_ERRORS where the template refuses them."""
        if self.jinja_text is None:
            return self._concatenated(messages, add_generation_prompt)
        variables = {
            **self.tokenizer.special_tokens,
            **self.arguments,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": self.now.strftime,
        }
        return render_traced(compile_template(self.jinja_text), variables)

    @functools.cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an assistant turn, then the tokenizer's end token where it is another one."""
        listed, _ = self.variables([Message("user", "question"), Message("assistant", "answer")])
        rendered = self.render(listed, None, add_generation_prompt=False)
        twin = self.tokenizer.twin_for([rendered])
        text = twin.neutralise(rendered)
        answer_end = max((run.begin + run.length for run in text.messages), default=0)
        after = [text.text[place] for place in text.controls if place >= answer_end]
        eos = self.tokenizer.eos_token_id
        stops = [*twin.ids_of(after[:1]), *([] if eos is None or not after else [eos])]
        return tuple(dict.fromkeys(stops))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides which text a conversation becomes, with the date if it is told."""
        dated = self.jinja_text is not None and "strftime_now" in self.jinja_text
        date = self.now.date().isoformat() if dated else None
        parts = [self.jinja_text, dict(self.arguments), self.system, self.tokenizer.special_tokens, date]
        parts.append(sorted(self.allowed_tokens))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _concatenated(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> Traced:
        roles = [message["role"] for message in messages]
        if roles != (["user"] if add_generation_prompt else ["user", "assistant"]):
            raise jinja2.TemplateError("concat takes one prompt and one response, nothing else")
        end = () if add_generation_prompt else (str(self.tokenizer.eos_token),)
        return joined((*self.tokenizer.leading_tokens, *(message["content"] for message in messages), *end))


def _check_concat(tokenizer: Tokenizer, arguments: Mapping[str, Any], system: str | None) -> None:
    problems: list[str] = []
    if tokenizer.eos_token is None:
        fact = "concat ends a response with the tokenizer's eos_token, and it has none"
        problems.append(problem(PLACE, fact, "name one in tokenizer_config.json, or use another template"))
    remedy = "remove it, or use another template"
    if arguments:
        problems.append(problem("data.template_args", "concat has no use for it", remedy))
    if system is not None:
        problems.append(problem("data.system", "concat has no place for it", remedy))
    if problems:
        raise ConfigError(problems)


def _check_chatml(tokenizer: Tokenizer) -> None:
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.control_tokens]
    if missing:
        fact = f"chatml needs {' and '.join(missing)}, which the tokenizer does not have as tokens"
        raise ConfigError(problem(PLACE, fact, "use a .jinja file written for this tokenizer, or concat"))


def _check_allowed(template: Template) -> None:
    """Refuses names in data.allow_tokens that are no control tokens."""
    known = template.tokenizer.control_tokens
    problems: list[str] = []
    for name in sorted(template.allowed_tokens - known.keys()):
        close = difflib.get_close_matches(name, known, n=_NAMES_SHOWN, cutoff=0.5)
        remedy = f"close ones are {' '.join(close)}" if close else "remove it"
        problems.append(problem("data.allow_tokens", f"the tokenizer has no control token {name!r}", remedy))
    if problems:
        raise ConfigError(problems)


def _read_template(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        remedy = "write auto, chatml, concat or the path of a .jinja file"
        raise ConfigError(problem(PLACE, f"{name} cannot be read ({reason})", remedy)) from error


def _checked(template: Template) -> Template:
    """Refuses what could not be trained: unreadable Jinja, reserved arguments, turns that end in no token."""
    taken = [name for name in _OWN_VARIABLES if name in template.arguments]
    if taken:
        fact = f"{', '.join(taken)} cannot be set here"
        raise ConfigError(problem("data.template_args", fact, "remove it; it comes from the records"))
    _check_allowed(template)
    try:
        stop_token_ids = template.stop_token_ids
    except jinja2.TemplateSyntaxError as error:
        fact = f"{template.name}, line {error.lineno}: {error.message}"
        raise ConfigError(problem(PLACE, fact, "correct the template")) from error
    except RENDERING_ERRORS as error:
        fact = f"{template.name} does not render a question and its answer: {error}"
        raise ConfigError(problem(PLACE, fact, "correct the template")) from error
    tokens = template.tokenizer.control_tokens
    if stopping := sorted(name for name in template.allowed_tokens if tokens[name] in stop_token_ids):
        fact = f"{' '.join(stopping)} ends an answer, and text that holds it would end there"
        raise ConfigError(problem("data.allow_tokens", fact, "remove it"))
    if not stop_token_ids:
        fact = f"{template.name} writes none of the tokenizer's control tokens after an answer"
        remedy = "use a template whose end of turn is a token of this tokenizer; no model could learn to stop"
        raise ConfigError(problem(PLACE, fact, remedy))
    return template


def _traced_message(index: int, message: Message) -> dict[str, Any]:
    """A message as templates read it; gpt-oss reads `thinking` where the others read `reasoning_content`."""
    traced: dict[str, Any] = {"role": message.role, "content": _traced(message.content, (index, "content"))}
    if message.reasoning_content is not None:
        reasoning = _traced(message.reasoning_content, (index, "reasoning_content"))
        traced |= {"reasoning_content": reasoning, "thinking": reasoning}
    if message.tool_calls:
        traced["tool_calls"] = _traced(list(message.tool_calls), (index, "tool_calls"))
    return traced


def _traced(value: Any, source: Source) -> Any:
    if isinstance(value, str):
        return Traced(value, ((len(value), source, 0),))
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value).items()
        return {_traced(key, source): _traced(entry, source) for key, entry in entries}
    if isinstance(value, list | tuple):
        return [_traced(entry, source) for entry in cast(Sequence[Any], value)]
    return value
