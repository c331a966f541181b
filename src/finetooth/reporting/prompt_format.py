"""How a template writes a question and its answer: for people, and as Ollama's template."""

from dataclasses import dataclass

from finetooth.data.records import Message
from finetooth.data.templates.engine import RENDERING_ERRORS
from finetooth.data.templates.template import Template

_SYSTEM, _QUESTION, _ANSWER = "‹system›", "‹question›", "‹answer›"


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """What a template writes around a question and its answer.

    example:      a question and its answer, rendered
    with_system:  the same behind a system text; None where the template takes none
    stop_tokens:  those that end an answer
    leading:      what the tokenizer itself puts before a text
    """

    example: str
    with_system: str | None
    stop_tokens: tuple[str, ...]
    leading: str


def prompt_format(template: Template) -> PromptFormat:
    """The format of a template's prompts, as its text shows it."""
    names = {token_id: name for name, token_id in template.tokenizer.control_tokens.items()}
    asked = Message("user", _QUESTION), Message("assistant", _ANSWER)
    try:
        with_system = _rendered(template, Message("system", _SYSTEM), *asked)
    except RENDERING_ERRORS:
        with_system = None
    return PromptFormat(
        example=_rendered(template, *asked),
        with_system=with_system if with_system and _SYSTEM in with_system else None,
        stop_tokens=tuple(names[token_id] for token_id in template.stop_token_ids),
        leading="".join(template.tokenizer.leading_tokens),
    )


def ollama_template(shown: PromptFormat) -> str | None:
    """The same as a template of Ollama, which writes what the tokenizer puts before a text by itself.

    None where the template changes a question or an answer, or writes what no Modelfile can hold.
    """
    parts = _between(shown.example, _QUESTION, _ANSWER)
    if parts is None or '"""' in shown.example:
        return None
    opening, middle, ending = parts
    opening = opening.removeprefix(shown.leading)
    whole = _in_go(opening)
    system = None if shown.with_system is None else _between(shown.with_system, _SYSTEM, _QUESTION, _ANSWER)
    if system is not None and system[2:] == (middle, ending):
        before = _in_go(system[0].removeprefix(shown.leading))
        behind = _in_go(system[1])
        whole = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{behind}{{{{ else }}}}{whole}{{{{ end }}}}"
    return f"{whole}{{{{ .Prompt }}}}{_in_go(middle)}{{{{ .Response }}}}{_in_go(ending)}"


def _rendered(template: Template, *messages: Message) -> str:
    listed, _ = template.variables(messages)
    return str(template.render(listed, None, add_generation_prompt=False))


def _between(text: str, *marks: str) -> tuple[str, ...] | None:
    """What stands before, between and behind marks; None where one of them does not stand there once."""
    parts: list[str] = []
    for mark in marks:
        if text.count(mark) != 1:
            return None
        before, text = text.split(mark)
        parts.append(before)
    return (*parts, text)


def _in_go(text: str) -> str:
    """Text in which a template of Go finds no command."""
    return text.replace("{{", '{{ "{{" }}')
