"""Every command that a page shows is one that there is; those about a run work in their order."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.shown_commands import commands_in_blocks, run_command
from tests.small_run import write_run
from typer.main import get_command

from finetooth.arguments import spell_out_resume
from finetooth.cli import app
from finetooth.config.keys import SETTINGS, find_setting

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md"), ROOT / "README.md"])
INLINE = re.compile(r"`finetooth ([a-z]+)\b[^`]*`")
RUN_HERE = ("starting", "evaluation", "report", "talking")
VERBS = get_command(app).commands  # type: ignore[attr-defined]


def shown() -> list[tuple[str, str]]:
    """The name of a page beside each command in its blocks."""
    return [
        (page.name, command)
        for page in PAGES
        for command in commands_in_blocks(page.read_text(encoding="utf-8"))
    ]


def require_sound(command: str) -> None:
    """Fails for a verb, an option, a value or a setting that there is not."""
    _, verb, *arguments = shlex.split(command)
    context = VERBS[verb].make_context(verb, spell_out_resume(arguments))
    for setting in context.params.get("overrides") or ():
        assert find_setting(setting.partition("=")[0]) in SETTINGS, setting


@pytest.mark.parametrize(("page", "command"), shown())
def test_a_command_in_a_block_is_sound(page: str, command: str):
    require_sound(command)


@pytest.mark.parametrize(
    "command",
    ["finetooth trian run.yaml", "finetooth train run.yaml --fast", "finetooth train run.yaml lr=1"],
)
def test_a_command_that_there_is_not_would_be_noticed(command: str):
    """Negative control."""
    with pytest.raises(Exception, match=r"trian|No such option|lr=1"):
        require_sound(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_in_a_sentence_is_one(page: Path):
    named = set(INLINE.findall(page.read_text(encoding="utf-8")))
    assert named <= VERBS.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three short runs, the records of which are there."""
    folder = tmp_path_factory.mktemp("shown")
    evaluation = {"exact_match": "plain", "max_new_tokens": 4, "exact_match_records": 2}
    with chdir(folder):
        write_run(folder, evaluation=evaluation, training={"max_steps": 2})
        (folder / "dev.jsonl").write_text(json.dumps({"prompt": "What is 99?", "response": "is 99."}) + "\n")
        for name in ("first", "second", "third"):
            done = run_command(f"finetooth train run.yaml output_dir=runs/{name}")
            assert done is not None
            assert done.exit_code == 0, done.output
        for step in (200, 400):  # as a longer run has them
            checkpoints = Path("runs/first/checkpoints")
            shutil.copytree(checkpoints / "step-000002", checkpoints / f"step-{step:06d}")
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_HERE)
def test_the_commands_of_a_page_work(name: str, folder: Path):
    """Those of `compare` take a minute; tests/test_readme.py runs them."""
    commands = commands_in_blocks((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
    quick = [command for command in commands if not command.startswith("finetooth compare ")]
    assert quick
    for command in quick:
        done = run_command(command, typed="What is 3?\n")
        assert done is not None
        assert done.exit_code == 0, f"{command}: {done.output}"
