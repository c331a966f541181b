"""Real shells complete commands, options, settings and file names, and quickly."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.small_run import SOURCES

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash here")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A search path with `finetooth`, and a working directory with files."""
    program = tmp_path / "bin" / "finetooth"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finetooth "$@"\n')
    program.chmod(0o755)
    (tmp_path / "here" / "runs").mkdir(parents=True)
    (tmp_path / "here" / "run.yaml").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def offered_by_bash(path: str, *words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        'eval "$(finetooth --completion bash)"\n'
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        '_finetooth_completion finetooth 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = [str(BASH), "--norc", "-c", script]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["finetooth", "e"], ["eval", "env", "export"]),
        (["finetooth", "report", "--o"], ["--out", "--offline"]),
        (["finetooth", "train", "run.yaml", "warm"], ["warmup_steps="]),
        (["finetooth", "train", "run.yaml", "optimizer", "="], ["adamw", "adamw_8bit"]),
        (["finetooth", "train", "run.yaml", "seed", "=", "1", "optimizer", "=", "adamw_"], ["adamw_8bit"]),
        (["finetooth", "train", "run.yaml", "seed", "=", "1", "warm"], ["warmup_steps="]),
        (["finetooth", "train", "run.yaml", "data.train", "="], []),
        (["finetooth", "eval", "runs/first", "evaluation.ev"], ["evaluation.every="]),
        (["finetooth", "eval", "ev"], []),
        (["finetooth", "init", "a.jsonl", "--preset", "q"], ["qlora"]),
        (["finetooth", "train", "run"], []),
    ],
)
def test_bash_is_offered_what_fits(path: str, words: list[str], offered: list[str]):
    assert offered_by_bash(path, *words) == offered


@needs_bash
def test_bash_completes_what_is_typed(path: str):
    """At a pseudo terminal: keys get no space behind them, and file names are bash's own."""
    typed = ("finetooth tra\t", "run.y\t", "warm\t", "3 optimizer=adamw_\t", "data.train=run.\t")
    line = typed_into_bash(path, *typed)
    assert line == "finetooth train run.yaml warmup_steps=3 optimizer=adamw_8bit data.train=run.yaml"


def typed_into_bash(path: str, *keys: str) -> str:
    """The line that stands there when bash has completed what was typed."""
    terminal, inner = pty.openpty()
    environment = {**os.environ, "PATH": path, "PS1": "$ ", "TERM": "dumb", "COLUMNS": "200"}
    shell = subprocess.Popen(
        [str(BASH), "--norc", "--noprofile", "-i"],
        env=environment,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    try:
        os.write(terminal, b"bind 'set enable-bracketed-paste off'\n")
        os.write(terminal, b"eval \"$(finetooth --completion bash)\"; echo r''eady\n")
        read_until_quiet(terminal, "ready")
        for piece in keys:
            os.write(terminal, piece.encode())
            read_until_quiet(terminal, "")
        os.write(terminal, b"\x01echo \n")
        return read_until_quiet(terminal, "\n").splitlines()[-2].strip()
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


def read_until_quiet(terminal: int, wanted: str) -> str:
    """What is shown until a text has been and nothing has followed for a while."""
    shown, ends_at = "", time.monotonic() + 30
    while time.monotonic() < ends_at:
        ready, _, _ = select.select([terminal], [], [], 1.5)
        if ready:
            shown += os.read(terminal, 4096).decode(errors="replace")
        elif wanted in shown:
            return shown
    raise AssertionError(f"{wanted!r} was not shown; shown was {shown!r}")


def answer(words: str, **variables: str) -> str:
    command = [sys.executable, "-m", "finetooth"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), **variables, "_TYPER_COMPLETE_ARGS": words}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_fish_and_zsh_are_told_what_a_command_does():
    asked = {"_FINETOOTH_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert answer("finetooth tra", **asked) == "train\tTrain the policy.\n"
    assert answer("finetooth train run.yaml adapter.ty", **asked) == "adapter.type=\n"
    assert answer("finetooth train run.yaml optimizer=adamw_", **asked) == "optimizer=adamw_8bit\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_sound(shell: str):
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell} here")
    command = [sys.executable, "-m", "finetooth", "--completion", shell]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    subprocess.run([program, "-n"], input=printed, text=True, check=True)


def test_an_unknown_shell_is_a_mistake():
    command = [sys.executable, "-m", "finetooth", "--completion", "tcsh"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search("'tcsh' is not one of 'bash', 'zsh', 'fish'", done.stderr)


def test_settings_are_offered_without_loading_what_trains():
    """Which takes seconds. What is loaded does not depend on how busy the machine is."""
    asked = {"_FINETOOTH_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {**os.environ, **asked, "PYTHONPATH": str(SOURCES), "PYTHONPROFILEIMPORTTIME": "1"}
    environment["_TYPER_COMPLETE_ARGS"] = "finetooth train run.yaml learning"
    command = [sys.executable, "-m", "finetooth"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "learning_rate=\n"
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "finetooth.config.completing" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "numpy", "huggingface_hub"}
