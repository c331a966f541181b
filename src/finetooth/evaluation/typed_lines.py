"""What a line means that somebody types while talking to a policy: something said, or a command."""

from dataclasses import dataclass

from finetooth.base.errors import ConfigError, problem

COMMANDS = {
    "/system": ("[TEXT]", "the system text from now on; without TEXT, none"),
    "/reset": ("", "forget what was said; the system text stays"),
    "/base": ("", "the base model's answer to the last question"),
    "/save": ("FILE", "write the conversation as a record that can be trained"),
    "/help": ("", "this list"),
}
"""By name, what follows it, and what it does."""


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the policy."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """One of COMMANDS, with what follows it."""

    name: str
    argument: str


def read_line(line: str) -> Said | Command | None:
    """What a line means; None where it is blank.

    Raises ConfigError for a command that there is not, or that is typed otherwise than it must be, and for
    bytes that were no UTF-8 (of which Python makes halves of surrogate pairs).

    >>> read_line("What?"), read_line("/save a.jsonl"), read_line("//etc/hosts?"), read_line(" ")
    (Said(text='What?'), Command(name='/save', argument='a.jsonl'), Said(text='/etc/hosts?'), None)
    """
    if any("\ud800" <= character <= "\udfff" for character in line):
        raise ConfigError(problem("line", "it is not UTF-8", "write it in UTF-8"))
    if not line.strip():
        return None
    if line.startswith("//"):
        return Said(line[1:])
    if not line.startswith("/"):
        return Said(line)
    name, _, argument = line.strip().partition(" ")
    _require_known(name, argument.strip())
    return Command(name, argument.strip())


def help_lines() -> list[str]:
    """The commands and what else there is to know, fit for 80 columns."""
    rows = [(f"{name} {argument}".strip(), told) for name, (argument, told) in COMMANDS.items()]
    rows.append(("//TEXT", "say a text that begins with /"))
    rows.append(("Ctrl-C", "end the answer; Ctrl-D ends the program"))
    rows.append(("…", "behind an answer: it was cut off, see --max-new-tokens"))
    width = max(len(typed) for typed, _ in rows)
    return [f"{typed:<{width}}  {told}" for typed, told in rows]


def _require_known(name: str, argument: str) -> None:
    if name not in COMMANDS:
        remedy = "/help lists the commands; a text that begins with / is written with //"
        raise ConfigError(problem(name, "no such command", remedy))
    wanted, _ = COMMANDS[name]
    if wanted == "FILE" and not argument:
        raise ConfigError(problem(name, "no FILE", f"write {name} FILE"))
    if argument and not wanted:
        raise ConfigError(problem(name, f"takes nothing, and {argument} stands behind it", f"write {name}"))
