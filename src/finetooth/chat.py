"""The verb `chat`: talk to a policy, with the template and stop tokens of its training."""

from rich.console import Console

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.base.terminal import print_text
from finetooth.data.records import Message
from finetooth.data.templates.template import encode_prompt
from finetooth.evaluation.speaker import Speaker, open_speaker


def chat(
    target: str, *, system: str | None = None, max_new_tokens: int = 256, console: Console | None = None
) -> None:
    """Reads a line, answers it, and goes on until end of input; `/reset` forgets the conversation.

    target: a run directory or a model folder. Without a chat template every line stands alone.
    Raises ConfigError, before the first line, for a system text that the template cannot take.
    """
    console = console or Console()
    speaker = open_speaker(target)
    opening = [Message("system", system)] if system else []
    has_turns = speaker.template.takes_turns
    if opening:
        _require_place_for_system(speaker, target, opening)
    hint = "" if has_turns else "; no chat template: every line stands alone"
    print_text(console, f"{target}: /reset forgets, Ctrl-D ends{hint}")
    messages = list(opening)
    while (line := _read(console)) is not None:
        if line.strip() == "/reset":
            messages = list(opening)
        elif line.strip():
            messages = [*(messages if has_turns else opening), Message("user", line)]
            (reply,) = speaker.reply([messages], max_new_tokens=max_new_tokens)
            messages.append(Message("assistant", reply.text))
            ending = "" if reply.stopped else " …"
            print_text(console, reply.text + ending)


def _require_place_for_system(speaker: Speaker, target: str, opening: list[Message]) -> None:
    try:
        encode_prompt(speaker.template, [*opening, Message("user", "Hello.")])
    except DataError as error:
        fact = f"the template of {target} cannot take it"
        if not speaker.template.takes_turns:
            fact = f"{target} has no chat template to put it in"
        raise ConfigError(problem("--system", fact, "leave it out")) from error


def _read(console: Console) -> str | None:
    try:
        return console.input("> ")
    except EOFError:
        return None
