"""Whether a command names programs, verbs, options, settings and files that there are; it is not run."""

import importlib
import re
import shlex
from collections.abc import Callable

import pytest
from tests.conftest import ROOT
from torch.distributed.run import get_args_parser
from typer.main import get_command

from finetooth.arguments import spell_out_resume
from finetooth.cli import app
from finetooth.config.keys import SETTINGS, find_setting

VERBS = get_command(app).commands  # type: ignore[attr-defined]


def require_sound(command: str) -> None:
    """Fails where a part of a command, in a pipe or behind another one, would not be understood."""
    for part in re.split(r" (?:\||&&) ", command):
        program, *arguments = shlex.split(part)
        PROGRAMS[program](arguments)


def require_finetooth(arguments: list[str]) -> None:
    verb, *others = arguments
    context = VERBS[verb].make_context(verb, spell_out_resume(others))
    for setting in context.params.get("overrides") or ():
        assert find_setting(setting.partition("=")[0]) in SETTINGS, setting


def require_torchrun(arguments: list[str]) -> None:
    options = get_args_parser().parse_args(arguments)
    assert (options.module, options.training_script) == (True, "finetooth")
    require_finetooth(options.training_script_args)


def require_targets(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    unknown = set(arguments) - set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert not unknown, unknown


def require_benchmark(arguments: list[str]) -> None:
    script, *options = arguments
    path = ROOT / script
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        importlib.import_module(path.stem)._parse(options)


def require_pins(arguments: list[str]) -> None:
    """What is installed by version is what the tested set holds."""
    pins = {argument for argument in arguments if "==" in argument}
    untested = pins - set((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert not untested, untested
    assert pins or arguments == ["install", "-c", "constraints.txt", "."], arguments


def require_nothing(arguments: list[str]) -> None:
    """What the shell itself has."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "finetooth": require_finetooth,
    "torchrun": require_torchrun,
    "make": require_targets,
    ".venv/bin/python": require_benchmark,
    "pip": require_pins,
    "source": require_nothing,
    "printf": require_nothing,
}
