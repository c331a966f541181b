"""What `finetooth export` writes: the policy of a finished run, in a folder that others load directly."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.base.files import MANIFEST_NAME, FileEntry, check_folder, new_folder, write_proved
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.training.parameter_files import DTYPES, stored_parameters, write_parameters

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


def open_run(target: str, *, place: str = "command line") -> FinishedRun:
    """The finished run in a run directory.

    Raises ConfigError where there is none, FinetoothError where a file of final/ is not as it was written.
    """
    folder = Path(target)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(problem(place, f"{target} is no run directory", "name that of a finished run"))
    if not (folder / "final").is_dir():
        raise ConfigError(problem(place, f"{folder} has no final/", "finish the run with train --resume"))
    if damages := check_folder(folder / "final"):
        remedy = "restore the files, or train again"
        raise FinetoothError(problem(folder / "final", damage, remedy) for damage in damages)
    return FinishedRun(folder, load_config(folder / "config.yaml"))


def write_folder(run: FinishedRun, out: Path, *, dtype: str, shard_bytes: int, card: str) -> None:
    """Writes a run's policy as plain transformers loads it: parameters in a type and in files of a size.

    card: the text of README.md. Raises FileExistsError where something stands at `out`.
    """
    written: dict[str, FileEntry] = {}
    with new_folder(out, written=written) as folder:
        written |= write_parameters(
            folder, stored_parameters(run.final), dtype=DTYPES[dtype], shard_bytes=shard_bytes
        )
        settings = json.loads((run.final / "config.json").read_bytes())
        settings["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        written["config.json"] = write_proved(folder / "config.json", [text.encode()])
        copy_texts(run.final, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def copy_texts(source: Path, folder: Path) -> None:
    """Copies what stands beside the parameters: tokenizer, chat template, the tokens that end an answer."""
    for file in sorted(source.iterdir()):
        is_parameters = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if not is_parameters and file.name not in _WRITTEN_ANEW:
            shutil.copyfile(file, folder / file.name)
