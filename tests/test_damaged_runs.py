"""Commands on a run whose files are damaged or gone: they do their work, or say in a sentence why not."""

import copy
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_run
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.evaluation import run_files

Place = tuple[str | int, ...]

COMMANDS = {
    "export": ("export", "run", "--out", "exported"),
    "export --to pt": ("export", "run", "--to", "pt", "--out", "exported"),
    "eval": ("eval", "run"),
    "compare": ("compare", "run", "base", "--prompt", "What?", "--max-new-tokens", "1"),
    "chat": ("chat", "run", "--max-new-tokens", "1"),
    "train --resume": ("train", "run.yaml", "--resume=must"),
    "train --resume, further": ("train", "run.yaml", "--resume=must", "max_steps=3", "--accept-changes"),
}
# Read in the same way by all that look at a run, and by all that load its policy.
SETTINGS = {"config.yaml"}
POLICY = {f"final/{name}.json" for name in ("config", "generation_config", "tokenizer", "tokenizer_config")}
# What else each reads of a run, but for what is first held against its hash.
READ = {
    "export": {"environment.json", "ledger.jsonl", "metrics.jsonl", "summary.json"},
    "export --to pt": {"metrics.jsonl", "summary.json"},
    "eval": {"environment.json"},
    "compare": set[str](),
    "chat": set[str](),
    "train --resume": {"environment.json", "summary.json"},
    "train --resume, further": {"environment.json", "metrics.jsonl"},
}
DAMAGED = {
    "export": READ["export"] | {"final/MANIFEST.json"},
    "export --to pt": READ["export --to pt"],
    "eval": READ["eval"],
    "chat": SETTINGS | POLICY,
    "train --resume": {"summary.json"},
    "train --resume, further": READ["train --resume, further"],
}
# Places where a value may be of another type; of lines, in the last one.
PLACES: dict[str, Sequence[Place]] = {
    "config.yaml": [()],
    "environment.json": [("versions",), ("precision",), ("template",), ("template", "now")],
    "ledger.jsonl": [("documents",)],
    "metrics.jsonl": [("step",), ("train_loss",), ("dev_perplexity",)],
    "summary.json": [("state",), ("num_steps",), ("final_step",)],
    "final/MANIFEST.json": [("files",)],
    "final/config.json": [("model_type",), ("hidden_size",)],
    "final/generation_config.json": [("pad_token_id",)],
    "final/tokenizer.json": [
        *[("added_tokens",), ("added_tokens", 0, "id"), ("decoder",)],
        *[("model", "vocab"), ("model", "unk_token")],
    ],
    "final/tokenizer_config.json": [()],
}
WRONG = {str: 7, bool: "text", int: "text", float: "text", list: {"a": 1}, dict: ["a"], type(None): [[]]}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of two steps in `intact/`, in which commands are given."""
    folder = tmp_path_factory.mktemp("damaged")
    with chdir(folder):
        write_run(
            folder,
            num_records=8,
            training={"max_steps": 2},
            evaluation={"every": 2, "max_new_tokens": 1},
            checkpoints={"every": 1, "keep": 3},
        )
        result = CliRunner().invoke(app, ["train", "run.yaml"])
        assert result.exit_code == 0, result.output
        Path("run").rename("intact")
        yield folder


def given(command: str) -> Result:
    settings = {"COLUMNS": "200"}
    return CliRunner().invoke(app, COMMANDS[command], input="Hi\n", prog_name="finetooth", env=settings)


def restore() -> None:
    """Puts the intact run back in its place."""
    for name in ("run", "exported"):
        shutil.rmtree(name, ignore_errors=True)
    shutil.copytree("intact", "run", symlinks=True)


def outcome(command: str, name: str, damage: bytes | None) -> str:
    """What a command says of a run with a damaged file, or without it; nothing where it does its work."""
    restore()
    path = Path("run", name)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    result = given(command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    return result.stderr.strip() if result.exit_code else ""


def is_sentence(told: str, name: str) -> bool:
    """Whether an error names the file or its folder, tells a fact and says what to do."""
    place = str(Path("run", name).parent)
    return told == "" or all(place in line and ": " in line and "; " in line for line in told.splitlines())


def damages(name: str) -> Iterator[tuple[str, bytes | None]]:
    """What may have become of a file, each with its name; None where it is gone."""
    content = Path("intact", name).read_bytes()
    lines = content.splitlines(keepends=True) if name.endswith(".jsonl") else [content]
    yield "gone", None
    for what, wrong in {"no JSON": b"[" * 100_000 + b"\n", "a list": b"[]\n"}.items():
        yield what, b"".join([*lines[:-1], wrong])
    if name.endswith(".yaml"):
        yield "wrong", content.replace(b"\ntraining:\n", b"\ntraining: 7\n")
        return
    last = json.loads(lines[-1])
    for place in PLACES[name]:
        yield f"wrong {place}", b"".join([*lines[:-1], json.dumps(replaced(last, place)).encode() + b"\n"])


def replaced(value: Any, place: Place) -> Any:
    """The same with a value of another type in a place."""
    if not place:
        return WRONG[type(value)]
    changed = copy.copy(value)
    changed[place[0]] = replaced(value[place[0]], place[1:])
    return changed


@pytest.mark.parametrize("command", DAMAGED)
def test_a_damaged_run_is_used_or_told(command: str):
    told = {
        (name, what): outcome(command, name, damage)
        for name in sorted(DAMAGED[command])
        for what, damage in damages(name)
    }
    assert {case: text for case, text in told.items() if not is_sentence(text, case[0])} == {}
    assert {name for (name, _), text in told.items() if text} == DAMAGED[command], "damage to each is noticed"


def test_what_is_wrong_is_told_with_its_place():
    assert outcome("export", "summary.json", None) == (
        "command line: run has no summary.json, so it goes on or was cut off; "
        "finish the run with train --resume"
    )
    assert outcome("export", "environment.json", b"{}") == (
        "run/environment.json: not what a run writes: it holds no versions, python, device, template; "
        "restore it, or name another run"
    )
    assert outcome("export --to pt", "metrics.jsonl", b'{"step": "one"}\n') == (
        "run/metrics.jsonl:1: no line that a run writes: Expected `int`, got `str` - at `$.step`; "
        "remove the line, or name another run"
    )
    assert outcome("eval", "environment.json", b'{"template": {"now": "noon"}}') == (
        "run/environment.json: not what a run writes: Invalid RFC3339 encoded datetime - at "
        "`$.template.now`; restore it, or name another run"
    )
    assert outcome("chat", "final/tokenizer_config.json", b'{"chat_template": 7}') == (
        "command line: run/final/tokenizer_config.json: Expected `str | array`, got `int` - at "
        "`$.chat_template`; repair or replace the file"
    )


def test_a_run_without_its_environment_is_gone_on_with():
    """It is written anew before the first step, and the card that tells of it is whole."""
    assert outcome("train --resume, further", "environment.json", None) == ""
    card = Path("run/final/README.md").read_text()
    assert "- template: `chatml`;" in card
    assert given("export").exit_code == 0


def test_without_the_check_of_types_a_traceback_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    """Negative control, with a reader that takes whatever it is given."""
    monkeypatch.setattr(run_files, "require_kind", lambda content, kind: None)
    summary = json.loads(Path("intact/summary.json").read_bytes())
    told = outcome("export", "summary.json", json.dumps(replaced(summary, ("num_steps",))).encode())
    assert told.startswith("ValueError: ")
    assert not is_sentence(told, "summary.json")


class Opened:
    """Which JSON and YAML files of `run/` Python opens while a command is at work."""

    def __init__(self) -> None:
        self.is_watching = False
        self.names: set[str] = set()
        sys.addaudithook(self._note)  # cannot be taken away, so it does nothing unless it watches

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_watching and event == "open" and isinstance(arguments[0], str):
            path, run = Path(arguments[0]).absolute(), Path("run").absolute()
            if path.suffix in (".json", ".jsonl", ".yaml") and path.is_relative_to(run):
                self.names.add(str(path.relative_to(run)))

    def by(self, command: str) -> set[str]:
        """Those of the intact run that a command opens."""
        restore()
        self.names.clear()
        self.is_watching = True
        try:
            result = given(command)
        finally:
            self.is_watching = False
        assert result.exit_code == 0, result.output
        return {name for name in self.names if Path("intact", name).is_file()}


def test_these_are_the_files_that_commands_read():
    opened = Opened()
    for command in ("export", "export --to pt", "eval", "compare", "chat"):
        names = opened.by(command) - SETTINGS
        policy = {name for name in names if name.startswith("final/")}
        assert policy - POLICY <= ({"final/MANIFEST.json"} if command.startswith("export") else set())
        assert names - policy == READ[command], command
