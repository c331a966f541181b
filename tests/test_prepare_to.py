"""`prepare --to` writes what was prepared for other systems, and reads it back as data of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.small_tokenizer import write_small_tokenizer

RUN = """
model: {path: tokenizer}
data: {train: train.jsonl, dev: 0.2, template: chatml, cache_dir: cache}
output_dir: run
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_small_tokenizer(tmp_path / "tokenizer")
    records = [json.dumps({"prompt": f"What is {n}?", "response": f"four {n}"}) for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(records))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def prepare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetooth", "prepare", "run.yaml", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "80"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_what_is_written_is_told(folder: Path):
    done = prepare(folder, "--to", "bin", "--out", "out")
    assert done.returncode == 0, done.stderr
    meta = json.loads((folder / "out/meta.json").read_text())
    assert done.stdout.endswith(
        f"\nwritten for train: {meta['train']['num_examples']} documents, "
        f"{meta['train']['total_tokens']} tokens, as bin in out\n"
        f"written for val: {meta['val']['num_examples']} documents, "
        f"{meta['val']['total_tokens']} tokens, as bin in out\n"
    )
    assert meta["total_examples"] == 30
    assert len(np.fromfile(folder / "out/train.bin", "<i4")) == meta["train"]["total_tokens"]


def test_json_names_what_was_written(folder: Path):
    done = prepare(folder, "--to", "h5", "--out", "out", "--row-length", "128", "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)["written"]
    assert (written["folder"], written["layout"]) == ("out", "h5")
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        *("MANIFEST.json", "meta.json", "sft_dev_packed.h5", "sft_packed.h5")
    ]


def test_mistakes_are_told_before_anything_is_prepared(folder: Path):
    (folder / "out").mkdir()
    for arguments, sentence in (
        (("--to", "bin"), "command line: --to and --out belong together; give both or neither\n"),
        (("--out", "out"), "command line: --to and --out belong together; give both or neither\n"),
        (("--to", "bin", "--out", "out"), "--out: out exists already; name another folder\n"),
    ):
        done = prepare(folder, *arguments)
        assert (done.returncode, done.stderr) == (2, sentence)
    assert not (folder / "cache").exists()
    done = prepare(folder, "--to", "parquet", "--out", "new")
    assert done.returncode == 2
    assert "'parquet' is not one of 'h5', 'bin', 'jsonl'" in done.stderr


@pytest.mark.parametrize(
    ("layout", "train", "val"),
    [
        ("bin", "train.bin", "val.bin"),
        ("h5", "sft_packed.h5", "sft_dev_packed.h5"),
        ("jsonl", "train.jsonl", "val.jsonl"),
    ],
)
def test_what_was_written_is_prepared_again_to_the_same_documents(
    folder: Path, layout: str, train: str, val: str
):
    first = prepare(folder, "--to", layout, "--out", "out", "--json")
    assert first.returncode == 0, first.stderr
    again = prepare(folder, f"data.train=out/{train}", f"data.dev=out/{val}", "--json")
    assert again.returncode == 0, again.stderr
    written, found = json.loads(first.stdout)["written"], json.loads(again.stdout)["splits"]
    for name, split in (("train", "train"), ("val", "dev")):
        assert found[split]["documents"] == written[name]["num_examples"]
        assert found[split]["tokens"] == written[name]["total_tokens"]
        assert found[split]["targets"] == json.loads(first.stdout)["splits"][split]["targets"]
