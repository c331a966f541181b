"""The package's source and what a run leaves behind hold nothing that could run what it was given."""

import ast
import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from tests.small_run import run_process, write_run

import finetooth

PACKAGE = Path(finetooth.__file__).parent
SHELLS = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
YAML_LOADERS = ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all")
MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")
# Writes an object that another system reads; that it reads none is tested below.
WRITES_PICKLES = "model/legacy/writing.py"
PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz", ".joblib")


def hazards_in(source: str) -> list[str]:
    """What in Python source runs text, pickles, or a shell, each with its line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        what = _hazard_of(node)
        if what is not None:
            found.append(f"{node.lineno}: {what}")  # type: ignore[attr-defined]
    return found


def _hazard_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        return next((f"import {name.name}" for name in node.names if name.name in PICKLES), None)
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{name.name}" for name in node.names}
        is_hazard = node.module in PICKLES or "torch.load" in names or names & {*SHELLS, *YAML_LOADERS}
        return f"from {node.module} import" if is_hazard else None
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    is_hazard = (
        name in ("eval", "exec", "compile", "__import__", *SHELLS, *YAML_LOADERS)
        or (name.endswith("torch.load") and options.get("weights_only") != "True")
        or (name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
        or options.get("shell", "False") != "False"
        or options.get("trust_remote_code", "False") != "False"
    )
    return ast.unparse(node) if is_hazard else None


def test_the_package_runs_nothing_that_it_is_given():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    found = {
        str(file.relative_to(PACKAGE)): hazards
        for file in files
        if (hazards := hazards_in(file.read_text(encoding="utf-8")))
    }
    assert [hazard.partition(": ")[2] for hazard in found.pop(WRITES_PICKLES)] == ["import pickle"]
    assert found == {}


def test_what_writes_pickles_reads_none():
    source = (PACKAGE / WRITES_PICKLES).read_text(encoding="utf-8")
    assert set(re.findall(r"pickle\b[.)\]]+\W*(\w+)", source)) <= {
        *("GLOBAL", "EMPTY_TUPLE", "NEWOBJ", "BUILD", "_Pickler")
    }


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "exec(code, {})", "compile(text, name, 'exec')", "__import__(name)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)"),
        *("yaml.load(text)", "yaml.unsafe_load(text)", "import pickle", "from pickle import loads"),
        *("from torch import load", "from os import system"),
        *("subprocess.run(command, shell=True)", "Popen(command, shell=flag)", "os.system(command)"),
        *("np.load(path, allow_pickle=True)", "Auto.from_pretrained(name, trust_remote_code=True)"),
    ],
)
def test_each_hazard_would_be_noticed(line: str):
    """Negative control."""
    assert hazards_in(f"def f():\n    {line}\n") != []


@pytest.mark.parametrize(
    "line",
    [
        *("model.eval()", "re.compile(text)", "torch.load(path, weights_only=True)", "np.load(path)"),
        *(
            "json.load(file)",
            "subprocess.run(command)",
            "Auto.from_pretrained(name, trust_remote_code=False)",
        ),
    ],
)
def test_what_is_harmless_is_not_taken_for_a_hazard(line: str):
    assert hazards_in(line) == []


def pickles_in(folder: Path) -> list[str]:
    """Files that are pickles or archives, by how they begin or by their name."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix in PICKLED_SUFFIXES or path.open("rb").read(4).startswith(MAGIC))
    )


def test_what_a_run_leaves_behind_holds_no_pickle(tmp_path: Path):
    write_run(tmp_path, num_records=8)
    code, stdout, stderr = run_process("train", "run.yaml", "max_steps=2", "--json", folder=tmp_path)
    assert code == 0, stderr
    assert json.loads(stdout)["state"] == "finished"
    run = tmp_path / "run"
    assert {"final", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert pickles_in(run) == []


def test_pickles_would_be_noticed(tmp_path: Path):
    """Negative control."""
    (tmp_path / "model.bin").write_bytes(b"nothing")
    (tmp_path / "hidden.json").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.zeros(1)}, tmp_path / "saved.safetensors")
    with zipfile.ZipFile(tmp_path / "archive.txt", "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "config.json").write_text("{}")
    assert pickles_in(tmp_path) == ["archive.txt", "hidden.json", "model.bin", "saved.safetensors"]
