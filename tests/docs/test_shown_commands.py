"""Every command that a page shows is one that there is, and is run by a test or listed with a reason."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.docs.test_docs import names_of_tests
from tests.legacy_systems import configurable_file
from tests.shown_commands import (
    BLOCK,
    COMMANDS,
    NOT_RUN,
    PAGES,
    SCRIPT,
    commands_in_blocks,
    commands_to_run,
    run_command,
)
from tests.small_run import write_run
from tests.small_tokenizer import write_small_tokenizer
from tests.sound_commands import PROGRAMS, VERBS, require_sound

RUN_HERE = (
    "docs/starting.md",
    "docs/evaluation.md",
    "docs/report.md",
    "docs/talking.md",
    "docs/legacy.md",
    "docs/scale.md",
)
RUN_ELSEWHERE = {
    "README.md": ("tests/test_readme.py", "test_commands_work_in_their_order"),
    "docs/quick-start.md": (
        "tests/docs/test_quick_start.py",
        "test_the_quick_start_works_and_prints_what_is_shown",
    ),
    "docs/next-stages.md": ("tests/docs/test_quick_start.py", "test_the_stages_after_go_on_from_its_run"),
    "examples/README.md": ("tests/docs/test_examples.py", "test_the_commands_of_the_page_work"),
}
INLINE = re.compile(r"`finetooth ([a-z]+)\b([^`]*)`")
SHORTER = {"compare": ("--max-new-tokens", "4"), "chat": ("--max-new-tokens", "4")}


def shown() -> list[tuple[str, str]]:
    """The name of a page beside each command in its blocks."""
    return [(page, command) for page, text in PAGES.items() for command in commands_in_blocks(text)]


@pytest.mark.parametrize(("page", "command"), shown())
def test_a_command_in_a_block_is_sound(page: str, command: str):
    require_sound(command)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("finetooth trian run.yaml", "trian"),
        ("finetooth train run.yaml --fast", "No such option"),
        ("finetooth train run.yaml lr=1", "lr=1"),
        ("printf x | finetooth chat runs/first --sistem y", "No such option"),
        ("torchrun -m finetooth train run.yaml --fast", "No such option"),
        ("make coffee", "coffee"),
        ("pip install torch==1.0 -c constraints.txt .", "torch==1.0"),
        ("finetrain run.yaml", "finetrain"),
    ],
)
def test_a_command_that_there_is_not_would_be_noticed(command: str, told: str):
    """Negative control."""
    with pytest.raises(Exception, match=told):
        require_sound(command)


def test_an_option_that_no_benchmark_has_would_be_noticed(capsys: pytest.CaptureFixture[str]):
    """Negative control."""
    with pytest.raises(SystemExit):
        require_sound(".venv/bin/python bench/train_speed.py --faster")
    assert "--faster" in capsys.readouterr().err


def neither_run_nor_listed(page: str, text: str) -> list[str]:
    """Commands of a page with this text. Where a page is run, those of other programs are not."""
    is_run = page in RUN_HERE or page in RUN_ELSEWHERE
    return [
        command
        for command in commands_to_run(text)
        if not is_run or not command.rpartition(" | ")[2].startswith("finetooth ")
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_or_listed(page: str):
    assert neither_run_nor_listed(page, PAGES[page]) == []


@pytest.mark.parametrize(
    ("page", "block"),
    [
        ("docs/adapters.md", "```\nfinetooth env\n```\n"),
        ("docs/adapters.md", "```yaml\nseed: 1\n```\n\n```sh\nfinetooth \\\n    env    # versions\n```\n"),
        ("README.md", "```\nwget -q records | finetooth env | tee versions\n```\n"),
    ],
)
def test_a_command_that_nobody_runs_would_be_noticed(page: str, block: str):
    """Negative control."""
    [command] = neither_run_nor_listed(page, f"{PAGES[page]}\n{block}")
    assert command in ("finetooth env", "wget -q records | finetooth env | tee versions")


def listed_in_vain(commands: set[str]) -> set[str]:
    """What is listed as not run, and is not among the commands shown."""
    return NOT_RUN.keys() - commands


def test_no_command_is_listed_that_no_page_shows():
    commands = {command for _, command in shown()}
    assert listed_in_vain(commands) == set()
    assert listed_in_vain(commands - {"make demo"}) == {"make demo"}, "negative control"


def test_the_tests_that_run_other_pages_exist():
    assert PAGES.keys() >= {*RUN_HERE, *RUN_ELSEWHERE}
    assert not [
        (file, name) for file, name in RUN_ELSEWHERE.values() if name not in names_of_tests(ROOT / file)
    ]


def overlooked_lines(text: str) -> list[str]:
    """Fences that bound no block, or one in a list; commands in blocks of another language."""
    outside = BLOCK.sub("", text).splitlines()
    inside = [block for language, block in BLOCK.findall(text) if language not in (*COMMANDS, SCRIPT)]
    return [line for line in outside if re.match(r"\s*(?:```|~~~)", line)] + [
        line for block in inside for line in block.splitlines() if line.partition(" ")[0] in PROGRAMS
    ]


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_overlooked(page: str):
    assert overlooked_lines(PAGES[page]) == []


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ("```text\nfinetooth env\n```\n", "finetooth env"),
        ("1. So:\n\n   ```\n   finetooth env\n   ```\n", "   ```"),
        ("~~~\nfinetooth env\n~~~\n", "~~~"),
    ],
)
def test_a_command_that_is_overlooked_would_be_noticed(block: str, line: str):
    """Negative control."""
    assert overlooked_lines(block)[0] == line


def unknown_in_sentences(text: str) -> list[str]:
    """Verbs and options that a sentence names and that there are not."""
    unknown: list[str] = []
    for verb, others in INLINE.findall(text):
        known = VERBS[verb].params if verb in VERBS else ()
        options = {option for parameter in known for option in parameter.opts}
        named = re.findall(r"(?<!\S)--[\w-]+", others)
        unknown += [verb] * (verb not in VERBS) + [option for option in named if option not in options]
    return unknown


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_and_option_in_a_sentence_is_one(page: str):
    assert unknown_in_sentences(PAGES[page]) == []


def test_a_verb_or_option_that_there_is_not_would_be_noticed():
    """Negative control."""
    assert unknown_in_sentences("Use `finetooth trian`, or `finetooth eval --fast 3`.") == ["trian", "--fast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three short runs, the records of which are there, and another system's checkpoint."""
    folder = tmp_path_factory.mktemp("shown")
    evaluation = {"exact_match": "plain", "max_new_tokens": 4, "exact_match_records": 2}
    with chdir(folder):
        write_run(folder, evaluation=evaluation, training={"max_steps": 2})
        (folder / "dev.jsonl").write_text(json.dumps({"prompt": "What is 99?", "response": "is 99."}) + "\n")
        configurable_file(folder / "ckpt.pt")
        write_small_tokenizer(folder / "tokenizer-folder")
        for name in ("first", "second", "third"):
            done = run_command(f"finetooth train run.yaml output_dir=runs/{name}")
            assert done is not None
            assert done.exit_code == 0, done.output
        for step in (200, 400):  # as a longer run has them
            checkpoints = Path("runs/first/checkpoints")
            shutil.copytree(checkpoints / "step-000002", checkpoints / f"step-{step:06d}")
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_the_commands_of_a_page_work(page: str, folder: Path):
    commands = commands_to_run(PAGES[page])
    assert commands
    for command in commands:
        verb = command.rpartition("finetooth ")[2].split()[0]
        done = run_command(command, *SHORTER.get(verb, ()), typed="What is 3?\n")
        assert done is not None
        assert done.exit_code == 0, f"{command}: {done.output}"
