"""Commands that files and pages show, run as a reader would, where the checkout's examples are at hand.

A fenced block of a page that names no language, or `sh`, shows commands, one a line; `bash` marks a script.
"""

import re
import runpy
import shlex
import subprocess
from pathlib import Path

from tests.conftest import ROOT
from typer.testing import CliRunner, Result

from finetooth.arguments import spell_out_resume
from finetooth.cli import app

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "examples")
    for path in sorted((ROOT / folder).glob("*.md"))
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("", "sh")
SCRIPT = "bash"

_INSTALLS = "needs the network, and installs"
_IN_MINUTES = "takes minutes to hours; tests/bench runs the script on something small"
NOT_RUN = {
    "make demo": f"{_INSTALLS}; tests/test_wheel.py runs the demo as it is installed",
    "make test": "runs these very tests",
    "make bench": _IN_MINUTES,
    "source .venv/bin/activate": "wants the environment that `make` sets up",
    "pip install -c constraints.txt .": _INSTALLS,
    "pip install torch==2.13.0 --index-url $TORCH_INDEX && pip install -c constraints.txt .": _INSTALLS,
    ".venv/bin/python bench/whole_runs.py --sizes 16M 55M --records train.jsonl --num-steps 50": _IN_MINUTES,
    ".venv/bin/python bench/whole_runs.py --num-steps 200 --repeats 1 --arms comes": _IN_MINUTES,
    ".venv/bin/python bench/whole_runs.py --scaling": _IN_MINUTES,
    ".venv/bin/python bench/train_speed.py": _IN_MINUTES,
    ".venv/bin/python bench/prepare_speed.py RUN.yaml": _IN_MINUTES,
    ".venv/bin/python bench/plan_accuracy.py": _IN_MINUTES,
    "finetooth train run.yaml --nproc 8": "wants eight GPUs; tests/test_readme.py runs two processes",
    "torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first-machine:29500"
    " --rdzv-id run-1 -m finetooth train run.yaml --resume auto": "wants four machines with eight GPUs each",
}
"""Commands that pages show and no test runs, each with the reason."""


def commands_in_comments(text: str) -> list[str]:
    """The indented commands in the comments of a run file."""
    return re.findall(r"^#   ((?:finetooth|python) .*)$", text, re.MULTILINE)


def commands_in_blocks(text: str) -> list[str]:
    """The commands that a page shows, without remarks behind them."""
    blocks = "".join(block for language, block in BLOCK.findall(text) if language in COMMANDS)
    lines = re.sub(r"\s*\\\n\s*", " ", blocks).splitlines()
    commands = [re.split(r"(?:^|\s)#\s", line)[0].strip() for line in lines]
    return [command for command in commands if command]


def commands_to_run(text: str) -> list[str]:
    """The commands that a page shows, without those that no test runs."""
    return [command for command in commands_in_blocks(text) if command not in NOT_RUN]


def link_checkout(folder: Path) -> None:
    """Puts the checkout's `examples` and `src` into a folder, by which commands find what they read."""
    for name in ("examples", "src"):
        (folder / name).symlink_to(ROOT / name)


def run_command(command: str, *settings: str, typed: str = "") -> Result | None:
    """Runs a `finetooth` command in this process, with more settings; None for a Python script, which ran.

    A shell runs what stands before a pipe; the command then reads its output instead of `typed`.
    """
    feeding, _, command = command.rpartition(" | ")
    if feeding:
        typed = subprocess.run(feeding, shell=True, stdout=subprocess.PIPE, text=True, check=True).stdout
    program, *arguments = shlex.split(command)
    if program == "python":
        runpy.run_path(arguments[0], run_name="__main__")
        return None
    assert program == "finetooth", command
    spelled = spell_out_resume([*arguments, *settings])
    environment = {"COLUMNS": "120"}
    return CliRunner().invoke(app, spelled, prog_name="finetooth", input=typed, env=environment)
