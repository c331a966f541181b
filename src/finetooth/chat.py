"""The verb `chat`: talk to a policy, with the template and stop tokens of its training."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from finetooth.base.errors import ConfigError, DataError, FinetoothError, problem
from finetooth.base.files import write_atomically
from finetooth.data.formats.reading import BadRecord, to_conversation
from finetooth.data.records import Message, Origin, Record
from finetooth.evaluation.dialogue import Dialogue, what_fits
from finetooth.evaluation.speaker import Reply, Speaker, open_base, open_speaker
from finetooth.evaluation.typed_lines import Command, help_lines, read_line
from finetooth.reporting.chat_screen import ChatScreen, open_screen


def chat(
    target: str, *, system: str | None = None, max_new_tokens: int = 256, console: Console | None = None
) -> None:
    """Reads lines, answers each word by word, and goes on until end of input; lines like /help are commands.

    target: a run directory or a model folder. Without a chat template every line stands alone.
    On a terminal, mistakes are told and Ctrl-C ends the answer alone; in a pipe they end the command.
    Raises ConfigError, before the first line, for a system text that the template cannot take.
    """
    screen = open_screen(console or Console())
    speaker = open_speaker(target)
    talk = _Talk(target, speaker, screen, max_new_tokens)
    if system:
        talk.set_system(system, place="--system")
    if screen.is_interactive:
        screen.remark(f"{target}: /help lists the commands, Ctrl-D ends")
    if not speaker.template.takes_turns:
        screen.remark("no chat template: every line stands alone")
    while (line := screen.read()) is not None:
        try:
            talk.take(line)
        except FinetoothError as error:
            if not screen.is_interactive:
                raise
            screen.list(error.problems)


class _Talk:
    """A conversation under way."""

    def __init__(self, target: str, speaker: Speaker, screen: ChatScreen, max_new_tokens: int):
        self.target = target
        self.speaker = speaker
        self.base: Speaker | None = None
        self.screen = screen
        self.max_new_tokens = max_new_tokens
        self.dialogue = Dialogue()
        self.num_left_out = 0

    def take(self, line: str) -> None:
        """Answers a line, or does what it commands."""
        meant = read_line(line)
        if isinstance(meant, Command):
            self._obey(meant)
        elif meant is not None:
            before = self.dialogue if self.speaker.template.takes_turns else self.dialogue.forgotten()
            asked = before.asked(meant.text)
            reply = self._answer(self.speaker, self._given(self.speaker, asked))
            if reply is not None:
                self.dialogue = asked.answered(reply.text, is_cut=not reply.stopped)

    def set_system(self, text: str, *, place: str) -> None:
        """Takes a system text; raises ConfigError where the template has no place for it."""
        changed = replace(self.dialogue, system=text or None)
        try:
            self.speaker.encode((*changed.opening, Message("user", "Hello.")))
        except DataError as error:
            fact = f"the template of {self.target} cannot take it"
            if not self.speaker.template.takes_turns:
                fact = f"{self.target} has no chat template to put it in"
            raise ConfigError(problem(place, fact, "leave it out")) from error
        self.dialogue = changed

    def _obey(self, command: Command) -> None:
        match command.name:
            case "/system":
                self.set_system(command.argument, place="/system")
                self.screen.remark("the system text is set" if command.argument else "no system text")
            case "/reset":
                self.dialogue = self.dialogue.forgotten()
                self.num_left_out = 0
                self.screen.remark("forgotten")
            case "/base":
                self._ask_base()
            case "/save":
                self._save(Path(command.argument).expanduser())
            case _:
                assert command.name == "/help", "read_line lets no other through"
                self.screen.list(help_lines())

    def _given(self, speaker: Speaker, dialogue: Dialogue) -> Sequence[Message]:
        """What of a conversation the model is given: all of it, or as much as leaves room for an answer."""
        positions = speaker.positions
        if positions is None:
            return (*dialogue.opening, *dialogue.messages)
        most = positions - min(self.max_new_tokens, positions // 2)
        given = what_fits(dialogue, num_tokens=lambda m: len(speaker.encode(m)), most=most)
        num_tokens = len(speaker.encode(given))
        if num_tokens >= positions:
            fact = f"{num_tokens:,} tokens with its system text, and the model has {positions:,} positions"
            raise DataError(problem("line", fact, "shorten it"))
        num_left_out = (len(dialogue.opening) + len(dialogue.messages) - len(given)) // 2
        if num_left_out > self.num_left_out:
            fact = f"the model has {positions:,} positions"
            self.screen.remark(f"{fact}: it is not given the first {num_left_out} questions and answers")
        self.num_left_out = num_left_out
        return given

    def _answer(self, speaker: Speaker, given: Sequence[Message]) -> Reply | None:
        """Shows an answer as it is written; None where it was ended before its first character."""
        shown: list[str] = []

        def show(piece: str) -> None:
            shown.append(piece)
            self.screen.show(piece)

        try:
            reply = speaker.say(given, max_new_tokens=self.max_new_tokens, on_text=show)
        except KeyboardInterrupt:
            if not self.screen.is_interactive:
                raise
            reply = Reply("".join(shown), stopped=False) if any(shown) else None
        self.screen.end_answer(is_cut=reply is None or not reply.stopped)
        return reply

    def _ask_base(self) -> None:
        """Shows what the base says to the last question; the conversation goes on without it."""
        if not self.dialogue.messages:
            raise ConfigError(problem("/base", "nothing was asked", "ask something first"))
        if self.base is None:
            self.base = open_base(self.target, self.speaker)
        self.screen.remark("the base model:")
        asked = Dialogue(self.dialogue.system, self.dialogue.messages[:-1])
        self._answer(self.base, self._given(self.base, asked))

    def _save(self, path: Path) -> None:
        """Writes the conversation as one line of JSON.

        Raises ConfigError where a file is there already, and for a conversation that is no record.
        """
        record = self.dialogue.record()
        if path.exists():
            raise ConfigError(problem("/save", f"{path} is there already", "name another file"))
        if not self.dialogue.messages:
            raise ConfigError(problem("/save", "nothing was said", "ask something first"))
        read = to_conversation(Record(Origin(str(path), 1), record), format="messages")
        if isinstance(read, BadRecord):
            raise ConfigError(problem("/save", f"no record to train: {read.fact}", "ask again, or /reset"))
        write_atomically(path, (json.dumps(record) + "\n").encode())
        cut = f", {self.dialogue.num_cut} of them cut off" if self.dialogue.num_cut else ""
        num_answers = self.dialogue.num_answers
        answers = "1 answer" if num_answers == 1 else f"{num_answers} answers"
        self.screen.remark(f"saved: {path}, with {answers}{cut}")
