"""What the words of a command line name: settings, targets, prompts."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from finetooth.base.errors import ConfigError, all_at_once, problem

if TYPE_CHECKING:
    from finetooth.config.schema import SFTConfig


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
        raise mistake("no target", "name a run directory, a checkpoint of one, or a model folder")
    checks: list[Callable[[], object]] = [
        lambda: find_targets(targets),
        lambda: load_settings(config or settings_file(targets), overrides),
    ]
    _, settings = all_at_once(lambda check: check(), checks)
    return cast("SFTConfig", settings)


def gather_prompts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts, and the lines of a text file that are not empty.

    Raises ConfigError for a file that cannot be read, and for an empty text.
    """
    prompts = [*texts, *(_read_lines(file) if file else [])]
    if not all(prompt.strip() for prompt in prompts):
        raise mistake("an empty prompt", "give --prompt a text")
    return prompts


def mistake(fact: str, remedy: str) -> ConfigError:
    """The error of a command line whose words do not go together."""
    return ConfigError(problem("command line", fact, remedy))


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(problem(path, f"cannot be read: {reason}", "name a text file")) from None
