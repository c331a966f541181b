"""What `finetooth export` writes: the policy of a finished run, in a folder that others load directly."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from finetooth.base.distributed import ALONE
from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.base.files import MANIFEST_NAME, FileEntry, check_folder, new_folder, write_proved
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.model.folders import ADAPTER_CONFIG
from finetooth.model.load import AdapterKind
from finetooth.training.dealt_files import gather_policy
from finetooth.training.parameter_files import (
    DTYPES,
    Parameters,
    held_parameters,
    stored_parameters,
    write_parameters,
)

FolderForm = Literal["folder", "merged", "adapter"]

_WRITTEN_ANEW = (MANIFEST_NAME, "config.json", "README.md")


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run directory with an intact final/."""

    folder: Path
    config: SFTConfig

    @property
    def final(self) -> Path:
        """The folder of its policy."""
        return self.folder / "final"

    @property
    def adapter(self) -> AdapterKind | None:
        """The kind of adapter that it trained, if it trained one."""
        return self.config.adapter.type


def open_run(target: str, *, place: str = "command line") -> FinishedRun:
    """The finished run in a run directory.

    Raises ConfigError where there is none, FinetoothError where a file of final/ is not as it was written.
    """
    folder = Path(target)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(problem(place, f"{target} is no run directory", "name that of a finished run"))
    if not (folder / "final").is_dir():
        raise ConfigError(problem(place, f"{folder} has no final/", "finish the run with train --resume"))
    if not (folder / "summary.json").is_file():
        fact = f"{folder} has no summary.json, so it goes on or was cut off"
        raise ConfigError(problem(place, fact, "finish the run with train --resume"))
    if damages := check_folder(folder / "final"):
        remedy = "restore the files, or train again"
        raise FinetoothError(problem(folder / "final", damage, remedy) for damage in damages)
    return FinishedRun(folder, load_config(folder / "config.yaml"))


def write_export(
    run: FinishedRun, out: Path, *, form: FolderForm, dtype: str, shard_bytes: int, card: str
) -> None:
    """Writes a run's policy in a form: parameters in a type and in files of a size.

    folder:  all parameters of a run that trained all of them
    merged:  the adapter in its base, computed in float32
    adapter: what peft puts into the base, in one file
    card:    the text of README.md. Raises FileExistsError where something stands at `out`.
    """
    written: dict[str, FileEntry] = {}
    with new_folder(out, written=written) as folder:
        settings = None
        if form == "merged":
            parameters, settings = _merged(run)
        else:
            parameters = stored_parameters(run.final)
        if form == "folder":
            settings = (run.final / "config.json").read_bytes()
        stem = "adapter_model" if form == "adapter" else "model"
        size = sys.maxsize if form == "adapter" else shard_bytes
        written |= write_parameters(folder, parameters, dtype=DTYPES[dtype], shard_bytes=size, stem=stem)
        if settings is not None:
            text = _with_dtype(settings, DTYPES[dtype])
            written["config.json"] = write_proved(folder / "config.json", [text.encode()])
        copy_texts(run.final, folder, without=() if form == "adapter" else (ADAPTER_CONFIG,))
        (folder / "README.md").write_text(card, encoding="utf-8")


def _merged(run: FinishedRun) -> tuple[Parameters, bytes]:
    """The merged parameters under their names on disk, and config.json."""
    from finetooth.model.merging import load_merged  # loads peft, which takes seconds

    assert run.adapter is not None, "the verb refuses runs without an adapter"
    policy = load_merged(run.final, kind=run.adapter, device=run.config.training.device)
    contents = gather_policy(policy, ALONE)
    (tensors,) = contents.tensors.values()
    return held_parameters(tensors), contents.texts["config.json"]


def _with_dtype(settings: bytes, dtype: torch.dtype) -> str:
    """A config.json that names a type of parameters."""
    named = json.loads(settings) | {"dtype": str(dtype).removeprefix("torch.")}
    return json.dumps(named, indent=2, ensure_ascii=False) + "\n"


def copy_texts(source: Path, folder: Path, *, without: Sequence[str] = ()) -> None:
    """Copies what stands beside the parameters: tokenizer, chat template, the tokens that end an answer."""
    for file in sorted(source.iterdir()):
        is_parameters = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if not is_parameters and file.name not in (*_WRITTEN_ANEW, *without):
            shutil.copyfile(file, folder / file.name)
