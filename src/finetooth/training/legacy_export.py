"""Exports from and to the checkpoints of described systems: `.pt` → folder, run → `.pt`."""

import json
import shutil
from pathlib import Path

from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import FileEntry, new_folder
from finetooth.config.schema import ModelConfig
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.model.legacy.reading import is_legacy
from finetooth.model.load import load_model
from finetooth.model.policy import PolicyModel
from finetooth.training.exports import FinishedRun
from finetooth.training.final import TOKENIZER_FILES
from finetooth.training.legacy_files import has_twin, write_pt
from finetooth.training.parameter_files import DTYPES, held_parameters, write_parameters

PLACE = "command line"
_CHAT_TEMPLATE = "chat_template.jinja"


def write_run_as_pt(run: FinishedRun, out: Path) -> None:
    """Writes the policy of a run that trained all parameters in the layout that its base came from."""
    model = load_model(ModelConfig(path=str(run.final)), place=PLACE)
    write_pt(run.folder, out, model=model, config=run.config)


def require_twin(run: FinishedRun) -> None:
    """Raises ConfigError for a run whose policy no architecture of transformers computes."""
    if is_legacy(str(run.final)):
        fact = f"{run.final} holds model.pt, which no architecture of transformers computes"
        raise ConfigError(problem("--to folder", fact, "write --to pt"))


def write_pt_as_folder(
    target: str, out: Path, *, dtype: str, shard_bytes: int, tokenizer: str | None = None
) -> None:
    """Writes the model of a `.pt` file as plain transformers loads it.

    tokenizer: folder or hub name of the tokenizer whose files are put beside it
    Raises ConfigError for a file that is not read, or that no architecture of transformers computes.
    """
    model = load_model(ModelConfig(path=target), place=PLACE)
    if not has_twin(model):
        fact = f"the head of {target} has a bias, which no architecture of transformers has"
        raise ConfigError(problem("--to folder", fact, "train from it as it is, and export the run --to pt"))
    source = None if tokenizer is None else load_tokenizer(tokenizer, place="--tokenizer").folder
    written: dict[str, FileEntry] = {}
    with new_folder(out, written=written) as folder:
        parameters = held_parameters(dict(model.named_parameters()))
        written |= write_parameters(folder, parameters, dtype=DTYPES[dtype], shard_bytes=shard_bytes)
        files = PolicyModel(model).settings_files()
        settings = json.loads(files["config.json"])
        settings["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
        files["config.json"] = json.dumps(settings, indent=2).encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if source is not None:
            _copy_tokenizer(source, folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in (*TOKENIZER_FILES, _CHAT_TEMPLATE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
