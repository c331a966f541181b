"""`export` writes what plain transformers loads, and tells what cannot be exported."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small_run import write_run
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from finetooth.base.files import check_folder
from finetooth.cli import app

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments], prog_name="finetooth", env={"COLUMNS": "100"})


def exported(*arguments: str) -> dict[str, Any]:
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in `run/`, in which commands are given."""
    folder = tmp_path_factory.mktemp("export")
    with chdir(folder):
        write_run(folder)
        assert CliRunner().invoke(app, ["train", "run.yaml"]).exit_code == 0
        yield folder / "run"


def test_the_folder_holds_the_policy_and_its_manifest(run: Path):
    result = exported("run")
    out = Path("run/export/folder")
    assert result == {"to": "folder", "out": str(out), "dtype": "fp32", "num_bytes": result["num_bytes"]}
    assert check_folder(out) == []
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, run / "final")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_type_is_the_one_that_was_asked_for(tmp_path: Path, dtype: str, torch_dtype: torch.dtype):
    exported("run", "--dtype", dtype, "--out", str(tmp_path / "out"), "--shard-size", "10KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "out", "run/final")
    )
    assert ours.dtype == torch_dtype
    whole = theirs.state_dict()
    assert all(torch.equal(tensor, whole[name].to(torch_dtype)) for name, tensor in ours.state_dict().items())


def test_plain_transformers_answers_from_the_folder_alone(run: Path, tmp_path: Path):
    exported("run", "--out", str(tmp_path / "out"))
    answers: list[str] = []
    for folder in (tmp_path / "out", run / "final"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        messages = [{"role": "user", "content": "What is 2?"}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = AutoModelForCausalLM.from_pretrained(folder).generate(**inputs, max_new_tokens=20)
        answers.append(tokenizer.decode(written[0]))
    assert answers[0] == answers[1]


def test_the_cards_of_run_and_export_tell_results_and_no_place_of_this_machine(run: Path, tmp_path: Path):
    exported("run", "--dtype", "bf16", "--out", str(tmp_path / "out"))
    cards = [
        (folder / "README.md").read_text(encoding="utf-8") for folder in (run / "final", tmp_path / "out")
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert cards[0] == cards[1].replace("`bf16`", "`fp32`")
    assert all(f" {summary['dev_loss']:.4g} |" in card and "`base`, fine-tuned" in card for card in cards)
    assert not any(str(place) in card for card in cards for place in (run.parent, tmp_path))


def test_no_folder_of_a_run_or_an_export_holds_a_pickle(run: Path):
    exported("run", "--out", "exported")
    for folder in (run, Path("exported")):
        assert not [path for pattern in PICKLES for path in folder.rglob(pattern)]
    assert all(not _is_pickle(path) for path in [*run.rglob("*"), *Path("exported").rglob("*")])


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later, or as a zip archive, which torch writes."""
    if not path.is_file():
        return False
    head = path.read_bytes()[:4]
    return (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05") or head == b"PK\x03\x04"


def test_what_is_no_finished_run_is_told(run: Path, tmp_path: Path):
    assert refused("base") == "command line: base is no run directory; name that of a finished run\n"
    shutil.copytree(run, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "final")
    told = f"command line: {tmp_path}/half has no final/; finish the run with train --resume\n"
    assert refused(str(tmp_path / "half")) == told


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    told = refused("run", "--out", str(tmp_path))
    assert told == f"--out: {tmp_path} exists; name a new folder, or remove it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_policy_is_not_exported(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "final" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = command(str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    told = "model.safetensors: its content differs from its hash; restore the files, or train again"
    assert (result.exit_code, result.stderr) == (1, f"{tmp_path}/run/final: {told}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["5", "GB", "-1GB", "0KB", "nanGB", "infGB", "5 apples"])
def test_a_size_that_is_none_is_told(size: str):
    told = refused("run", "--shard-size", size)
    assert told == f"--shard-size: {size!r} is no size; write for instance 500MB or 5GB\n"
