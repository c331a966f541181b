"""`export --verify` passes what is the policy, and fails what was changed, each in its row."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.small_run import write_run
from typer.testing import CliRunner

from finetooth import export as export_module
from finetooth.cli import app
from finetooth.evaluation import plain_reader
from finetooth.export import export
from finetooth.reporting.findings import findings_of
from finetooth.reporting.run_reading import read_run
from finetooth.training import reloading
from finetooth.training.exports import write_export

ROWS = ["logits", "KL", "greedy answers", "stops", "stop tokens", "chat template"]


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in `run/`, in which commands are given."""
    folder = tmp_path_factory.mktemp("verified")
    with chdir(folder):
        write_run(folder, num_records=40)
        trained = CliRunner().invoke(app, ["train", "run.yaml", "num_train_epochs=12"])
        assert trained.exit_code == 0
        yield folder / "run"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the program that reads exports without the seconds that a process of its own takes to start."""

    def run_here(folder: Path, answers: Path) -> None:
        plain_reader.main(folder, json.loads((answers / "request.json").read_text()), answers)

    monkeypatch.setattr(reloading, "_run", run_here)


def verified(out: Path, **options: Any) -> dict[str, Any]:
    return export("run", out=out, verify=True, **options)


@pytest.mark.slow
def test_an_export_in_fp32_is_the_policy_to_the_bit(tmp_path: Path):
    command = ["export", "run", "--out", str(tmp_path / "out"), "--verify", "--json"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [verdict["name"] for verdict in printed["verdicts"]] == ROWS
    assert {verdict["state"] for verdict in printed["verdicts"]} == {"passed"}
    assert {verdict["measured"] for verdict in printed["verdicts"]} == {0}
    assert (printed["passed"], printed["split"]) == (True, "dev")
    assert json.loads(Path("run/verified.json").read_text()) == printed
    assert {f.name: f.state for f in findings_of(read_run("run"))}["reload parity"] == "good"
    assert printed["num_documents"] == printed["num_documents_computed"] > 4
    assert max(len(line.rstrip()) for line in result.stderr.splitlines()[1:]) <= 80


@pytest.mark.usefixtures("in_this_process")
def test_an_export_in_bf16_is_near_the_policy(tmp_path: Path):
    verdicts = verified(tmp_path / "out", dtype="bf16")["verdicts"]
    assert 0 < verdicts[0]["measured"] < verdicts[0]["limit"] == 1.0
    assert 0 < verdicts[1]["measured"] < verdicts[1]["limit"] == 1e-2
    assert verdicts[0]["what"].endswith("plain transformers in bfloat16")


def spoil_parameters(folder: Path) -> None:
    """One tensor of a layer changes by a fifth."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.2
    save_file(tensors, file, metadata={"format": "pt"})


def spoil_template(folder: Path) -> None:
    """A line end is missing."""
    file = folder / "chat_template.jinja"
    text = file.read_text()
    assert "assistant\\n" in text or "assistant\n" in text
    file.write_text(text.replace("assistant\\n", "assistant").replace("assistant\n", "assistant"))


def spoil_stop_tokens(folder: Path) -> None:
    """No token ends an answer."""
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": None}))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("spoil", "rows"),
    [
        (spoil_parameters, {"logits", "KL"}),
        (spoil_template, {"chat template"}),
        (spoil_stop_tokens, {"greedy answers", "stops", "stop tokens"}),
    ],
)
def test_what_was_changed_fails_in_its_row(
    spoil: Any, rows: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative controls: the folder is changed before the fresh process reads it."""

    def changed(run: Any, out: Path, **options: Any) -> None:
        write_export(run, out, **options)
        spoil(out)

    monkeypatch.setattr(export_module, "write_export", changed)
    result = CliRunner().invoke(app, ["export", "run", "--out", str(tmp_path / "out"), "--verify"])
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    failed = set(last.removeprefix("failed: ").split(", "))
    assert rows <= failed <= rows | {"greedy answers", "stops"}


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(run: Any, out: Path, **options: Any) -> None:
        write_export(run, out, **options)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(export_module, "write_export", broken)
    result = CliRunner().invoke(app, ["export", "run", "--out", str(tmp_path / "out"), "--verify"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()[-1:]
    assert line.startswith(f"{tmp_path}/out: plain transformers does not load it: ")
    assert line.endswith("; the export cannot be used as it is: report this mistake of finetooth")
