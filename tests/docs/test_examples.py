"""Every example trains as it stands, for two steps, and the commands shown with it work."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.shown_commands import commands_in_comments, commands_to_run, link_checkout, run_command
from tests.small_run import run_process

from finetooth.config.load import load_config

# gsm8k.yaml wants data beside the checkout; tests/test_readme.py runs it.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.stem != "gsm8k")
SHORTER = ("max_steps=2", "max_new_tokens=4", "train_documents=8")
PAGE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that looks like the checkout and takes what is written."""
    link_checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state_of(run: Path) -> tuple[str, int]:
    """How a run ended, and the number of its last step."""
    last = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    return json.loads((run / "summary.json").read_text())["state"], last


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_its_commands_work(path: Path, checkout: Path):
    if path.stem == "qlora":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes, which holds a base in 4 bits, is missing")
    commands = commands_in_comments(path.read_text(encoding="utf-8"))
    assert f"finetooth train examples/{path.name}" in commands
    for command in commands:
        result = run_command(command, *(SHORTER if " train " in command else ()), typed="Who?\n")
        assert result is None or result.exit_code == 0, result.output
    output = load_config(path).output_dir
    assert output == f"runs/examples/{path.stem}"
    assert state_of(checkout / output) == ("finished", 2)


def test_the_page_names_every_example():
    named = {f"[{path.name}]({path.name})" for path in (ROOT / "examples").glob("*.yaml")}
    assert all(name in PAGE for name in named)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(checkout: Path, capsys: pytest.CaptureFixture[str]):
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            assert cell["outputs"] == [], "what it shows is of one machine"
    assert len(names["losses"]) == 36
    assert names["losses"][-1] < 0.1 * names["losses"][0]
    shown = capsys.readouterr().out
    assert "<|im_start|>assistant\n⟦" in shown
    assert "<|im_end|>⟧" in shown
    assert (checkout / "runs/examples/notebook/model.safetensors").is_file()
    assert "[notebook.ipynb](notebook.ipynb)" in PAGE


@pytest.mark.slow
def test_the_commands_of_the_page_work(checkout: Path):
    """The second in processes of its own: two of them."""
    once, twice = commands_to_run(PAGE)
    result = run_command(once, *SHORTER)
    assert result is not None
    assert result.exit_code == 0, result.output
    assert twice.endswith(" --nproc 2")
    exit_code, _, stderr = run_process(*shlex.split(twice)[1:], *SHORTER, folder=checkout)
    assert exit_code == 0, stderr
    for name in ("slow", "two_processes"):
        assert state_of(checkout / "runs" / "examples" / name) == ("finished", 2)


def test_conversations_with_tools_train_every_turn_of_the_assistant_and_nothing_else(checkout: Path):
    records = [json.loads(line) for line in (checkout / "examples/data/tools.jsonl").read_text().splitlines()]
    result = run_command("finetooth inspect examples/multi_turn_tools.yaml --record 1")
    assert result is not None
    shown = result.output.count("⟦")
    assert shown == sum(message["role"] == "assistant" for message in records[0]["messages"]) == 4
    assert '⟦call weather {"city": "Lima"}<|im_end|>⟧' in result.output
