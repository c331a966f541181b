"""The verb `chat`: talk to a policy, with the template and stop tokens of its training."""

from rich.console import Console

from finetooth.data.records import Message
from finetooth.evaluation.speaker import open_speaker


def chat(
    target: str, *, system: str | None = None, max_new_tokens: int = 256, console: Console | None = None
) -> None:
    """Reads a line, answers it, and goes on until end of input; `/reset` forgets the conversation.

    target: a run directory or a model folder. Without a chat template every line stands alone.
    """
    console = console or Console()
    speaker = open_speaker(target)
    opening = [Message("system", system)] if system else []
    has_turns = speaker.template.jinja_text is not None
    hint = "" if has_turns else "; no chat template: every line stands alone"
    console.print(f"{target}: /reset forgets, Ctrl-D ends{hint}", markup=False, highlight=False)
    messages = list(opening)
    while (line := _read(console)) is not None:
        if line.strip() == "/reset":
            messages = list(opening)
        elif line.strip():
            messages = [*(messages if has_turns else opening), Message("user", line)]
            (reply,) = speaker.reply([messages], max_new_tokens=max_new_tokens)
            messages.append(Message("assistant", reply.text))
            ending = "" if reply.stopped else " …"
            console.print(reply.text + ending, markup=False, highlight=False)


def _read(console: Console) -> str | None:
    try:
        return console.input("> ")
    except EOFError:
        return None
