"""The quick start and the stages after it are run in one folder, in the order in which they stand."""

import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.docs.test_docs import run_examples
from tests.shown_commands import BLOCK, commands_to_run, link_checkout, run_command

QUICK_START = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
NEXT_STAGES = (ROOT / "docs" / "next-stages.md").read_text(encoding="utf-8")
SHORTER = ("max_steps=2", "max_new_tokens=4", "exact_match_records=2")
LEFT_OUT = "…"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory that looks like the checkout, with somebody's own records and base model."""
    folder = tmp_path_factory.mktemp("quick_start")
    link_checkout(folder)
    shutil.copy(ROOT / "examples" / "data" / "chats.jsonl", folder / "mine.jsonl")
    (folder / "base").symlink_to(ROOT / "src" / "finetooth" / "assets" / "base")
    with chdir(folder):
        yield folder


def shown_outputs(text: str) -> dict[str, list[str]]:
    """The lines shown behind the block of each command; none where no block with output follows."""
    found: dict[str, list[str]] = {}
    commands: list[str] = []
    for language, block in BLOCK.findall(text):
        if language == "text":
            found[commands[-1]] = block.splitlines()
        elif not language:
            commands = block.splitlines()
            found |= {command: [] for command in commands}
    return found


def in_outline(line: str, *, is_exact: bool) -> str:
    """A line without its margins; numbers, which training decides, count as such where it is not exact."""
    spaced = " ".join(line.split())
    return spaced if is_exact else re.sub(r"\d[\d.,]*", "0", spaced)


def missing_lines(shown: list[str], printed: str, *, is_exact: bool) -> list[str]:
    """Lines that are shown and were not printed."""
    outline = {in_outline(line, is_exact=is_exact) for line in printed.splitlines()}
    return [line for line in shown if line != LEFT_OUT and in_outline(line, is_exact=is_exact) not in outline]


@pytest.mark.slow
def test_the_quick_start_works_and_prints_what_is_shown(folder: Path):
    """Trained for two steps only, so that answers and figures are not compared."""
    outputs = shown_outputs(QUICK_START)
    assert list(outputs) == commands_to_run(QUICK_START)
    verbs = [command.split()[1] for command in outputs]
    assert verbs == ["init", "inspect", "train", "eval", "chat", "report", "export", "init", "train"]
    for command, shown in outputs.items():
        verb = command.split()[1]
        questions = [line.removeprefix("> ") for line in shown if verb == "chat" and line.startswith("> ")]
        shorter = SHORTER if verb == "train" else ()
        result = run_command(command, *shorter, typed="".join(line + "\n" for line in questions))
        assert result is not None
        assert result.exit_code == 0, result.output
        is_exact = verb in ("init", "inspect")
        assert verb == "chat" or not missing_lines(shown, result.output, is_exact=is_exact)


def test_a_line_that_is_not_printed_is_noticed():
    """Negative control."""
    shown = ["steps 12", LEFT_OUT, "done in 3 rows"]
    assert missing_lines(shown, "steps 13\ndone in 3 rows\n", is_exact=False) == []
    assert missing_lines(shown, "steps 13\ndone in 3 rows\n", is_exact=True) == ["steps 12"]
    assert missing_lines(shown, "steps 12\n", is_exact=False) == ["done in 3 rows"]


@pytest.mark.slow
def test_the_stages_after_go_on_from_its_run(folder: Path):
    pytest.importorskip("trl", reason="TRL is not installed")
    pytest.importorskip("datasets", reason="datasets, which TRL reads, is not installed")
    export, compare = commands_to_run(NEXT_STAGES)
    shutil.rmtree(folder / "runs" / "chats" / "export")
    exported = run_command(export)
    assert run_examples(NEXT_STAGES) == 2
    compared = run_command(compare)
    for result in (exported, compared):
        assert result is not None
        assert result.exit_code == 0, result.output
    assert (folder / "runs" / "grpo" / "final" / "model.safetensors").exists()
