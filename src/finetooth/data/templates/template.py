"""How messages become text: the tokenizer's own chat template, a built-in one, or a file."""

import difflib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import jinja2

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.config.checks import TEMPLATE_NAMES
from finetooth.data.records import Message
from finetooth.data.templates.built_in import BUILT_IN, check_settings, fit_tokenizer, text_of
from finetooth.data.templates.engine import RENDERING_ERRORS, compile_template, render_traced
from finetooth.data.templates.provenance import Source, Traced
from finetooth.data.templates.text import TELLS_TIME, UntellableDateError, date_formats, variables_read
from finetooth.data.tokenizer.tokenizer import Tokenizer, UnencodableError
from finetooth.data.tokenizer.twin import Rendered, Twin

PLACE = "data.template"
SYSTEM = -1  # the message index of the system text that data.system puts before a conversation
TOOLS: Source = (-2, "tools")

_NAMES_SHOWN = 5
_QUESTION, _ANSWER = Message("user", "question"), Message("assistant", "answer")
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", TELLS_TIME)


def resolve_template(
    name: str,
    tokenizer: Tokenizer,
    *,
    template_args: Mapping[str, Any] | None = None,
    system: str | None = None,
    allow_tokens: Sequence[str] = (),
    is_prompt_response: bool = False,
    now: datetime | None = None,
) -> "Template":
    """The template that `data.template: name` means for a tokenizer.

    name:               auto, chatml, six-token, headers, concat, own:NAME (one of several templates of the
                        tokenizer) or the path of a .jinja file; auto is the tokenizer's own template, or
                        without one concat for prompts and responses, chatml for messages
    template_args:      further variables for the template: {"enable_thinking": False}
    system:             system text for conversations that have none
    allow_tokens:       control tokens that text of messages may become
    is_prompt_response: whether the records are prompts and responses
    now:                the time that the template tells; default: that of the call
    Raises ConfigError where the template cannot be used with this tokenizer.

    A tokenizer that lacks tokens which a built-in template writes is given them: the template's `tokenizer`
    has them, and its `added_tokens` are their names.
    """
    arguments = dict(template_args or {})
    if name == "auto":
        name = _automatic(tokenizer, is_prompt_response)
    grown = tokenizer
    if name in BUILT_IN:
        check_settings(name, tokenizer, template_args=arguments, system=system)
        text = text_of(name)
        grown, arguments = fit_tokenizer(name, tokenizer)
    elif name == "own" or name.startswith("own:"):
        text = _own_template(name, tokenizer)
    else:
        text = _read_template(name)
    template = Template(
        name=name,
        jinja_text=text,
        tokenizer=grown,
        arguments=arguments,
        system=system,
        now=(now or datetime.now()).replace(tzinfo=None),
        allowed_tokens=frozenset(allow_tokens),
        added_tokens=tuple(
            name for name in grown.given_tokens if grown.control_tokens[name] > tokenizer.largest_id
        ),
    )
    return _checked(template)


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

    name:       own or own:NAME (the tokenizer's), that of a built-in one, or the path of a file
    jinja_text: its text; with the other values written into it, it is chat_template.jinja of final/
    tokenizer:  with the tokens that the template writes
    arguments:  further variables for the template
    system:     system text where a conversation has none
    now:        the local time that strftime_now tells
    allowed_tokens: control tokens that text of messages may become
    added_tokens:   those for which the tokenizer had no id, in the order of the ids they were given
    """

    name: str
    jinja_text: str
    tokenizer: Tokenizer
    arguments: Mapping[str, Any]
    system: str | None
    now: datetime
    allowed_tokens: frozenset[str] = frozenset()
    added_tokens: tuple[str, ...] = ()

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
        variables = {
            **self.tokenizer.special_tokens,
            **self.arguments,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            TELLS_TIME: self.now.strftime,
        }
        return render_traced(compile_template(self.jinja_text), variables)

    @functools.cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an assistant turn, then the tokenizer's end token where it is another one."""
        twin, text = self._probe(_QUESTION, _ANSWER)
        answer_end = max((run.begin + run.length for run in text.messages), default=0)
        after = [text.text[place] for place in text.controls if place >= answer_end]
        eos = self.tokenizer.eos_token_id
        stops = [*twin.ids_of(after[:1]), *([] if eos is None or not after else [eos])]
        return tuple(dict.fromkeys(stops))

    @functools.cached_property
    def written_token_ids(self) -> tuple[int, ...]:
        """Ids of the control tokens that it writes around two turns, ascending."""
        probes = self._probe(_QUESTION, _ANSWER), self._probe(_QUESTION, add_generation_prompt=True)
        places = ((twin, text.text[place]) for twin, text in probes for place in text.controls)
        return tuple(sorted({token_id for twin, name in places for token_id in twin.ids_of(name)}))

    @functools.cached_property
    def takes_turns(self) -> bool:
        """Whether a conversation can go on after an answer."""
        try:
            self._probe(_QUESTION, _ANSWER, _QUESTION, add_generation_prompt=True)
        except RENDERING_ERRORS:
            return False
        return True

    @functools.cached_property
    def date_formats(self) -> tuple[str, ...]:
        """The formats in which it tells the time; none where its text is the same at any time."""
        return tuple(date_formats(self.jinja_text))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides which text a conversation becomes, with the times it tells."""
        parts = [self.jinja_text, dict(self.arguments), self.system, self.tokenizer.special_tokens]
        times = [self.now.strftime(format) for format in self.date_formats]
        parts += [times, sorted(self.allowed_tokens)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _probe(self, *messages: Message, add_generation_prompt: bool = False) -> tuple[Twin, Rendered]:
        listed, _ = self.variables(messages)
        text = self.render(listed, None, add_generation_prompt=add_generation_prompt)
        twin = self.tokenizer.twin_for([text])
        return twin, twin.neutralise(text)


def _automatic(tokenizer: Tokenizer, is_prompt_response: bool) -> str:
    if tokenizer.chat_template is not None:
        return "own"
    if tokenizer.named_templates:
        names = ", ".join(f"own:{name}" for name in sorted(tokenizer.named_templates))
        fact = "the tokenizer has several templates of its own, and none of them is the default"
        raise ConfigError(problem(PLACE, fact, f"write one of {names}"))
    return "concat" if is_prompt_response else "chatml"


def _own_template(name: str, tokenizer: Tokenizer) -> str:
    _, _, chosen = name.partition(":")
    text = tokenizer.named_templates.get(chosen) if chosen else tokenizer.chat_template
    if text is None:
        names = ", ".join(f"own:{name}" for name in sorted(tokenizer.named_templates))
        fact = f"the tokenizer has no template {chosen!r} of its own" if chosen else "the tokenizer has none"
        raise ConfigError(problem(PLACE, fact, f"write {names or 'auto'}"))
    return text


def _check_arguments(template: Template) -> None:
    """Refuses arguments that the template takes from elsewhere, or never reads."""
    problems: list[str] = []
    place = "data.template_args"
    reads = variables_read(template.jinja_text)
    if taken := [name for name in _OWN_VARIABLES if name in template.arguments]:
        remedy = "remove it; it comes from the records"
        problems.append(problem(place, f"{', '.join(taken)} cannot be set here", remedy))
    if unread := [name for name in template.arguments if name not in (*reads, *_OWN_VARIABLES)]:
        could_be = sorted(reads.difference(_OWN_VARIABLES, template.tokenizer.special_tokens))
        remedy = f"remove it, or write one of {', '.join(could_be)}" if could_be else "remove it"
        problems.append(problem(place, f"{template.name} does not read {', '.join(unread)}", remedy))
    if problems:
        raise ConfigError(problems)


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
        remedy = f"write {', '.join(TEMPLATE_NAMES)} or the path of a .jinja file"
        raise ConfigError(problem(PLACE, f"{name} cannot be read ({reason})", remedy)) from error


def _checked(template: Template) -> Template:
    """Refuses what could not be trained: unreadable Jinja, reserved arguments, turns that end in no token."""
    _check_allowed(template)
    try:
        _check_arguments(template)
        _ = template.date_formats
        stop_token_ids = template.stop_token_ids
    except jinja2.TemplateSyntaxError as error:
        fact = f"{template.name}, line {error.lineno}: {error.message}"
        raise ConfigError(problem(PLACE, fact, "correct the template")) from error
    except UntellableDateError as error:
        fact = f"{template.name}: {error}"
        raise ConfigError(
            problem(PLACE, fact, "write the format itself, as in strftime_now('%Y')")
        ) from error
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
    for field, text in (("name", message.name), ("tool_call_id", message.tool_call_id)):
        if text is not None:
            traced[field] = _traced(text, (index, field))
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
