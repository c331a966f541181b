"""Commands that files and pages show, run as a reader would, where the checkout's examples are at hand."""

import re
import runpy
import shlex
from pathlib import Path

from tests.conftest import ROOT
from typer.testing import CliRunner, Result

from finetooth.arguments import spell_out_resume
from finetooth.cli import app


def commands_in_comments(text: str) -> list[str]:
    """The indented commands in the comments of a run file."""
    return re.findall(r"^#   ((?:finetooth|python) .*)$", text, re.MULTILINE)


def commands_in_blocks(text: str) -> list[str]:
    """The commands in the fenced blocks of a page that name no language."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [
        re.split(r"\s#\s", line)[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.startswith("finetooth ")
    ]


def link_checkout(folder: Path) -> None:
    """Puts the checkout's `examples` and `src` into a folder, by which commands find what they read."""
    for name in ("examples", "src"):
        (folder / name).symlink_to(ROOT / name)


def run_command(command: str, *settings: str, typed: str = "") -> Result | None:
    """Runs a `finetooth` command in this process, with more settings; None for a Python script, which ran."""
    program, *arguments = shlex.split(command)
    if program == "python":
        runpy.run_path(arguments[0], run_name="__main__")
        return None
    spelled = spell_out_resume([*arguments, *settings])
    environment = {"COLUMNS": "120"}
    return CliRunner().invoke(app, spelled, prog_name="finetooth", input=typed, env=environment)
