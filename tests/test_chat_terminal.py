"""`chat` on a terminal: a person types at a pseudo terminal, and sees what a person would see."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.small_run import SOURCES, write_base
from tests.small_tokenizer import write_small_tokenizer
from tests.test_chat import CHATML

# A policy that never stops writes a token at a time, each after a pause, so that there is something to end.
SLOW = """
import sys, time
from finetooth.evaluation import speaker
said = speaker.Speaker.say
def slow(self, messages, *, max_new_tokens, on_text):
    def pausing(piece):
        on_text(piece)
        time.sleep(0.02 if messages[-1].content != "long" else 0.2)
    return said(self, messages, max_new_tokens=max_new_tokens, on_text=pausing)
speaker.Speaker.say = slow
from finetooth.cli import main
main()
"""


class Typist:
    """Types into a program on a pseudo terminal of 80 columns, and reads what it shows."""

    def __init__(self, *arguments: str, folder: Path, **variables: str):
        self.terminal, inner = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "COLUMNS": "80", **variables}
        self.program = subprocess.Popen(
            [sys.executable, "-c", SLOW, *arguments],
            cwd=folder,
            env=environment,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )
        os.close(inner)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def read_until(self, wanted: str, *, seconds: float = 60) -> str:
        """What is shown up to a text, from where reading ended last."""
        ends_at = time.monotonic() + seconds
        while wanted not in self.shown:
            ready, _, _ = select.select([self.terminal], [], [], max(0, ends_at - time.monotonic()))
            assert ready, f"{wanted!r} was not shown; shown was {self.shown!r}"
            try:
                self.shown += os.read(self.terminal, 4096).decode(errors="replace")
            except OSError:  # the program has ended, and its terminal with it
                break
        before, _, self.shown = self.shown.partition(wanted)
        return before + wanted

    def end(self) -> int:
        """Ends the input (Ctrl-D); returns the exit code."""
        self.type("\x04")
        return self.program.wait(timeout=60)


@contextlib.contextmanager
def typing_into(*arguments: str, folder: Path, **variables: str) -> Iterator[Typist]:
    person = Typist(*arguments, folder=folder, **variables)
    try:
        yield person
    finally:
        person.program.kill()
        person.program.wait()
        os.close(person.terminal)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    write_small_tokenizer(write_base(tmp_path / "tuned", tie_word_embeddings=False), chat_template=CHATML)
    return tmp_path


@pytest.mark.slow
def test_a_conversation_at_a_terminal(tuned: Path):
    """The terminal is a dumb one, without colours: nothing but text may be written to it."""
    arguments = ("chat", "tuned", "--max-new-tokens", "60")
    with typing_into(*arguments, folder=tuned, TERM="dumb", NO_COLOR="1") as person:
        opening = person.read_until("> ")
        assert "tuned: /help lists the commands, Ctrl-D ends\r\n" in opening
        person.type("/help\n")
        assert "//TEXT" in person.read_until("> ")
        person.type("long\n")
        person.read_until("long\r\n")
        time.sleep(1.5)
        person.type("\x03")
        ended = person.read_until(" …\r\n")
        person.read_until("> ")
        person.type("/nonsense\n")
        assert "no such command" in person.read_until("> ")
        person.type("\x03")
        assert "Ctrl-D ends" in person.read_until("> ")
        person.type("short\n")
        person.read_until("short\r\n")
        whole = person.read_until(" …\r\n")
        assert len(ended) < len(whole)
        person.read_until("> ")
        person.type("/save talk.jsonl\n")
        assert "saved: talk.jsonl, with 2 answers, 2 of them cut off" in person.read_until("> ")
        assert person.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*m", opening + ended + whole)


@pytest.mark.slow
def test_lines_are_called_back(tuned: Path):
    pytest.importorskip("readline")
    arguments = ("chat", "tuned", "--max-new-tokens", "1")
    with typing_into(*arguments, folder=tuned, TERM="xterm") as person:
        person.read_until("> ")
        person.type("remarkable\n")
        person.read_until("> ")
        person.type("\x1b[A")  # the arrow upwards
        person.read_until("remarkable")
        person.type("\n")
        person.read_until("> ")
        assert person.end() == 0
