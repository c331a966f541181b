"""Every command and the run.yaml of the README, run as a reader would; every example."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.documents import save_small_model
from tests.shown_commands import BLOCK, commands_in_comments, commands_to_run, link_checkout, run_command
from tests.small_tokenizer import write_small_tokenizer

from finetooth.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = BLOCK.findall(README)
COMMANDS = commands_to_run(README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, records and the README's run.yaml."""
    folder = tmp_path_factory.mktemp("readme")
    write_small_tokenizer(folder / "base")
    save_small_model(folder / "base", vocab_size=320)
    records = [
        {"messages": [{"role": "user", "content": f"Add {n}"}, {"role": "assistant", "content": f"{n + 1}!"}]}
        for n in range(100)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run_yaml,) = [text for language, text in BLOCKS if language == "yaml"]
    (folder / "run.yaml").write_text(run_yaml)
    return folder


def finetooth(command: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "finetooth", command
    process = [sys.executable, "-m", "finetooth", *arguments]
    return subprocess.run(process, cwd=folder, input=text, capture_output=True, text=True, check=False)


def test_the_readme_shows_every_command():
    shown = {shlex.split(command)[1] for command in COMMANDS}
    made = {"init", "prepare", "inspect", "plan", "verify", "train"}
    assert shown == made | {"eval", "compare", "chat", "env", "export", "report"}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_work_in_their_order(command: str, folder: Path):
    done = finetooth(command, folder, text="Add 3\n")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_a_typing_error_is_answered_as_the_readme_says(tmp_path: Path):
    lines = ["model: {path: ./base}", "data: {train: train.jsonl}", "output_dir: runs/first", "training:"]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "  lerning_rate: 1e-4"]) + "\n")
    done = finetooth("finetooth train run.yaml", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() in README


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#]+)\)", README))
def test_what_the_readme_points_to_is_there(name: str):
    assert name.startswith("https://") or (ROOT / name).exists()


def test_the_map_names_what_is_there():
    package = ROOT / "src" / "finetooth"
    (drawn,) = [text for _, text in BLOCKS if text.startswith("src/finetooth/")]
    names = set(re.findall(r"\b\w+\.py\b|\b\w+/(?= )", drawn)) - {"pretrain_demo_base.py"}
    entries = {path.name + ("/" if path.is_dir() else "") for path in package.iterdir()}
    assert names == entries - {"__init__.py", "__main__.py", "__pycache__/"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_settings_of_every_example_are_valid(path: Path):
    load_config(path)


@pytest.mark.slow
def test_gsm8k_goes_the_whole_way(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All records are prepared; two steps are trained; answers are compared, also by `eval`."""
    (tmp_path / "shared").symlink_to(shared)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    link_checkout(checkout)
    monkeypatch.chdir(checkout)
    train, measure = commands_in_comments((ROOT / "examples" / "gsm8k.yaml").read_text(encoding="utf-8"))
    settings = ["max_steps=2", "global_batch_size=2", "train_documents=4", "exact_match_records=2"]
    settings += ["max_new_tokens=4", "warmup_steps=0", "data.dev=0.002"]
    settings += [f"data.cache_dir={tmp_path / 'cache'}"]
    done = run_command(train, *settings, "--json")
    assert done is not None
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["state"] == "finished"
    assert summary["exact_match"] in (0.0, 0.5, 1.0)
    ledger = [json.loads(line) for line in Path("runs/gsm8k/ledger.jsonl").read_text().splitlines()]
    assert len(ledger) == 7473
    assert {line["state"] for line in ledger} == {"kept"}
    measured = run_command(measure)
    assert measured is not None
    assert measured.exit_code == 0, measured.stderr


def test_the_readme_leads_to_every_page():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", README))
