"""Mirrors: TensorBoard and wandb are shown what metrics.jsonl tells. That file stays the truth.

tensorboard/    in the run directory: what a resumed run will do again is purged from what is shown
wandb.json      {"id": "8f3a01bc", "updates": 57, "evaluations": 40}: the run at wandb, and up to which step
                it has been shown lines of either kind. A resumed run goes on there and shows none twice.
                As figures cannot be taken back, one that goes on with changes begins a new one, with all.

A mirror that fails is told once and left out; the run goes on.
"""

import functools
import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import write_atomically
from finetooth.config.schema import LoggingConfig, SFTConfig
from finetooth.config.settings import values_of
from finetooth.training.metrics import MetricsLog, Reached, is_evaluation

_T = TypeVar("_T")
_NO_FIGURES = ("step", "time")


class Mirror(Protocol):
    """Where lines of metrics.jsonl are shown besides."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Shows the figures of a line."""
        ...

    def flush(self) -> None:
        """Returns when all is where it cannot be lost with the process."""
        ...

    def close(self, *, has_failed: bool) -> None:
        """Nothing more will come."""
        ...


def require_mirrors(logging: LoggingConfig) -> None:
    """Raises ConfigError where a mirror is asked for whose package is not installed, or wandb knows nobody.

    On a terminal wandb may ask for a key.
    """
    asked = {"tensorboard": logging.tensorboard, "wandb": logging.wandb is not None}
    problems = [
        problem(f"logging.{name}", f"it needs the package {name}", f"pip install 'finetooth[{name}]'")
        for name, is_asked in asked.items()
        if is_asked and importlib.util.find_spec(name) is None
    ]
    if problems:
        raise ConfigError(problems)
    if logging.wandb is not None and not _is_offline():
        _require_login()


def _is_offline() -> bool:
    """Whether wandb is not to be spoken to; WANDB_MODE wins over finetooth's own --offline."""
    default = "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online"
    return os.environ.get("WANDB_MODE", default) != "online"


def _require_login() -> None:
    import wandb  # pyright: ignore[reportMissingImports] - an extra; takes seconds

    try:
        is_known = wandb.login(verify=False)
    except wandb.UsageError:
        is_known = False
    if not is_known:
        remedy = "run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline"
        raise ConfigError(problem("logging.wandb", "wandb has no key of yours", remedy))


class Mirrors:
    """The mirrors of a run, each until it fails; within `with`, which closes them.

    openers: by setting, what opens a mirror; notify: is told of each that fails
    """

    def __init__(self, openers: Mapping[str, Callable[[], Mirror]], *, notify: Callable[[str], object]):
        self._notify = notify
        self._mirrors: dict[str, Mirror] = {}
        for name, opener in openers.items():
            if (mirror := self._attempt(name, opener)) is not None:
                self._mirrors[name] = mirror

    def __enter__(self) -> "Mirrors":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ):
        self._each(lambda mirror: mirror.close(has_failed=kind is not None))

    def write(self, line: Mapping[str, Any]) -> None:
        """Shows the figures of a line of metrics.jsonl."""
        self._each(lambda mirror: mirror.write(line))

    def flush(self) -> None:
        """Returns when a resumed run may count on what was written."""
        self._each(lambda mirror: mirror.flush())

    def _each(self, work: Callable[[Mirror], object]) -> None:
        for name, mirror in list(self._mirrors.items()):
            self._attempt(name, functools.partial(work, mirror))

    def _attempt(self, name: str, work: Callable[[], _T]) -> _T | None:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, the run is worth more
            self._mirrors.pop(name, None)
            fact = f"{type(error).__name__}: {error}"
            self._notify(problem(name, fact, "the run goes on without it; metrics.jsonl has everything"))
            return None


def open_mirrors(
    config: SFTConfig,
    metrics: MetricsLog,
    *,
    reached: Reached,
    done: int,
    has_changed: bool,
    notify: Callable[[str], object],
) -> Mirrors:
    """Opens what the settings ask for, on the rank that writes, and shows what is not there yet.

    metrics:     holds what counts of the steps through `done`
    reached:     how far it went before later steps were forgotten
    has_changed: whether the run goes on otherwise than it was begun
    """
    output = Path(config.output_dir)
    openers: dict[str, Callable[[], Mirror]] = {}
    if metrics.is_written and config.logging.tensorboard:
        openers["logging.tensorboard"] = lambda: TensorBoardMirror(
            output / "tensorboard", metrics.each_line(), done=done
        )
    if metrics.is_written and config.logging.wandb is not None:
        openers["logging.wandb"] = lambda: WandbMirror(
            config, metrics.each_line(), reached=reached, is_new=has_changed or done == 0
        )
    return Mirrors(openers, notify=notify)


class TensorBoardMirror:
    """Event files of TensorBoard in a folder.

    lines: those of the steps through `done`; of them the folder lacks at most those of the last step
    """

    def __init__(self, folder: Path, lines: Iterable[Mapping[str, Any]], *, done: int):
        from torch.utils.tensorboard import SummaryWriter  # loads tensorboard, which takes seconds

        first = done if any(folder.glob("events.out.tfevents.*")) else 0
        self._writer = SummaryWriter(str(folder), purge_step=first)
        for line in lines:
            if line["step"] >= first:
                self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Shows the figures of a line."""
        for name, value in _figures(line).items():
            self._writer.add_scalar(name, value, line["step"], walltime=line.get("time"))

    def flush(self) -> None:
        """Returns when all is in the file."""
        self._writer.flush()

    def close(self, *, has_failed: bool) -> None:
        """Ends the file; TensorBoard does not know of failures."""
        self._writer.close()


class WandbMirror:
    """A run at wandb: in the project of `logging.wandb`, under the name of the run directory.

    is_new: whether it is begun rather than gone on with. WANDB_MODE, WANDB_DIR and others are honoured.
    """

    def __init__(
        self, config: SFTConfig, lines: Iterable[Mapping[str, Any]], *, reached: Reached, is_new: bool
    ):
        import wandb  # pyright: ignore[reportMissingImports] - an extra; takes seconds

        output = Path(config.output_dir)
        self._shown = _shown_until(output / "wandb.json", reached, is_new=is_new)
        self._run = wandb.init(
            project=config.logging.wandb,
            id=self._shown["id"],
            resume="allow",
            name=output.name,
            dir=output,
            config=values_of(config),
            mode=os.environ.get("WANDB_MODE", "offline" if _is_offline() else "online"),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        for line in lines:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Shows the figures of a line, if it has not been shown."""
        kind = "evaluations" if is_evaluation(line) else "updates"
        figures = _figures(line)
        if figures and line["step"] > self._shown[kind]:
            self._run.log({"step": line["step"], **figures})

    def flush(self) -> None:
        """Does nothing: wandb's own process has what it was given."""

    def close(self, *, has_failed: bool) -> None:
        """Returns when wandb has everything."""
        self._run.finish(exit_code=int(has_failed))


def _shown_until(path: Path, reached: Reached, *, is_new: bool) -> dict[str, Any]:
    """Reads, or begins, and writes wandb.json: what a run at wandb has been shown by now."""
    if is_new or not path.exists():
        shown: dict[str, Any] = {"id": secrets.token_hex(4), "updates": -1, "evaluations": -1}
    else:
        shown = json.loads(path.read_bytes())
        for kind, step in reached._asdict().items():
            shown[kind] = max(shown[kind], step)
    write_atomically(path, (json.dumps(shown) + "\n").encode())
    return shown


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line, by names that say where they come from."""
    group = "evaluation" if is_evaluation(line) else "update"
    return {
        f"{group}/{name}": float(value)
        for name, value in line.items()
        if name not in _NO_FIGURES and isinstance(value, int | float)
    }
