"""What commands are given: their options, and the settings and prompts that these name."""

import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from finetooth.base.errors import ConfigError, all_at_once, problem
from finetooth.shells import complete_setting, complete_setting_behind_target

if TYPE_CHECKING:
    from finetooth.config.schema import SFTConfig


class Resume(StrEnum):
    """What `train` does where the run directory already holds a run."""

    NEVER = "never"
    MUST = "must"
    AUTO = "auto"


class Layout(StrEnum):
    """How `prepare --to` writes documents for other systems."""

    H5 = "h5"
    BIN = "bin"
    JSONL = "jsonl"


class Records(StrEnum):
    """Whose records `eval --per-record` names."""

    DEV = "dev"
    TRAIN = "train"


class What(StrEnum):
    """What `init --preset` trains."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Form(StrEnum):
    """What `export --to` writes."""

    FOLDER = "folder"
    ADAPTER = "adapter"
    MERGED = "merged"
    PT = "pt"


class DType(StrEnum):
    """The type in which `export` writes parameters."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def _go_offline(asked: bool) -> None:
    if asked:
        os.environ["HF_HUB_OFFLINE"] = "1"


RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="File with the settings of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that win over the file: learning_rate=1e-4",
        autocompletion=complete_setting,
    ),
]
Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET... [KEY=VALUE...]",
        help="Run directories, checkpoints, model folders; settings that win over those of the run.",
        autocompletion=complete_setting_behind_target,
    ),
]
Target = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Run directory or model folder.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, is_eager=True, help="Fetch nothing from the hub.")
]


def spell_out_resume(arguments: Iterable[str]) -> list[str]:
    """Gives `--resume` its value, so that no other argument is taken for it.

    >>> spell_out_resume(["train", "--resume", "run.yaml"]), spell_out_resume(["--resume", "auto"])
    (['train', '--resume=must', 'run.yaml'], ['--resume=auto'])
    """
    spelled: list[str] = []
    for argument in arguments:
        if argument == "auto" and spelled and spelled[-1] == "--resume=must":
            spelled[-1] = "--resume=auto"
        else:
            spelled.append("--resume=must" if argument == "--resume" else argument)
    return spelled


def without_nproc(arguments: list[str]) -> list[str]:
    """The command that each process runs.

    >>> without_nproc(["train", "--nproc", "2", "run.yaml", "--nproc=2"])
    ['train', 'run.yaml']
    """
    places = {place for place, argument in enumerate(arguments) if argument == "--nproc"}
    dropped = places | {place + 1 for place in places}
    kept = [argument for place, argument in enumerate(arguments) if place not in dropped]
    return [argument for argument in kept if not argument.startswith("--nproc=")]


def load_settings(run_file: Path, overrides: list[str] | None) -> "SFTConfig":
    """The settings of a file, with those that win over it."""
    from finetooth.config.load import load_config

    return load_config(run_file, overrides or [])


def split_targets(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Targets and settings of a command line that holds both, each in their order.

    A setting is KEY=VALUE. What holds a `=` otherwise is a target if it is there, or is plainly a path; else
    it is taken for a setting that was misspelt.

    >>> split_targets(["runs/a", "learning_rate=1e-4", "runs/lr=2", "lerning_rate=3"])
    (['runs/a', 'runs/lr=2'], ['learning_rate=1e-4', 'lerning_rate=3'])
    """
    from finetooth.config.keys import find_setting

    targets: list[str] = []
    settings: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        is_path = "/" in key or Path(argument).exists()
        is_setting = equals and (isinstance(find_setting(key.strip()), str) or not is_path)
        (settings if is_setting else targets).append(argument)
    return targets, settings


def load_for(targets: list[str], config: Path | None, overrides: list[str]) -> "SFTConfig":
    """The settings that `eval` was given, or those of the first run among the targets.

    Raises ConfigError with every mistake in targets and settings.
    """
    from finetooth.evaluation.targets import find_targets, settings_file

    if not targets:
        remedy = "name a run directory, a checkpoint of one, or a model folder"
        raise ConfigError(problem("command line", "no target", remedy))
    checks: list[Callable[[], object]] = [
        lambda: find_targets(targets),
        lambda: load_settings(config or settings_file(targets), overrides),
    ]
    _, settings = all_at_once(lambda check: check(), checks)
    return cast("SFTConfig", settings)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises ConfigError for one that cannot be read."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(problem(path, f"cannot be read: {reason}", "name a text file")) from None
