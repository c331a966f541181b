"""The verb `compare`: the same prompts answered by two models, side by side."""

from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from finetooth.base.terminal import plain_text
from finetooth.data.records import Message
from finetooth.evaluation.speaker import Reply, open_speaker


def compare(
    first: str, second: str, *, prompts: list[str], max_new_tokens: int = 256, console: Console | None = None
) -> dict[str, Any]:
    """Answers every prompt with both models; returns and prints the answers.

    first, second: run directories or model folders.
    """
    console = console or Console(quiet=True)
    conversations = [[Message("user", prompt)] for prompt in prompts]
    answers = [
        open_speaker(target).reply(conversations, max_new_tokens=max_new_tokens) for target in (first, second)
    ]
    table = Table(*(Column(plain_text(name)) for name in ("prompt", first, second)), show_lines=True)
    for prompt, one, other in zip(prompts, *answers, strict=True):
        table.add_row(plain_text(prompt), _cell(one), _cell(other))
    console.print(table)
    return {
        "first": first,
        "second": second,
        "answers": [
            {"prompt": prompt, "first": _as_dict(one), "second": _as_dict(other)}
            for prompt, one, other in zip(prompts, *answers, strict=True)
        ],
    }


def _cell(reply: Reply) -> Text:
    return plain_text(reply.text + ("" if reply.stopped else " …"))


def _as_dict(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "stopped": reply.stopped}
