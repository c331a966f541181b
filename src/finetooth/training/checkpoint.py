"""CheckpointManager: rolling, verified checkpoints in `checkpoints/step-000200/`.

    config.json, generation_config.json, *.safetensors    the parameters, as transformers loads them
    optimizer.safetensors    "exp_avg.model.norm.weight", "step.model.norm.weight", …; several files where the
                             ranks share the parameters
    state.json               next_step, what the run is of, the best evaluation, the fp16 loss scale
    MANIFEST.json            size and SHA-256 of every file, written last

`best` is a link to the checkpoint with the best evaluation, by `evaluation.best_by`. No pickle, and no state
of random number generators: every draw follows from (seed, step).
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import FinetoothError, problem
from finetooth.base.files import MANIFEST_NAME, FileEntry, check_folder, remove_folder, told_plainly
from finetooth.model.policy import PolicyModel
from finetooth.training.background import Background
from finetooth.training.dealt_files import (
    Contents,
    common_folder,
    gather_policy,
    gather_tensors,
    write_contents,
)
from finetooth.training.optimizer import settle_states
from finetooth.training.tensor_files import read_like

_PATIENCE_SECONDS = 30.0
_STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a resumed run needs besides parameters and optimiser.

    next_step:     the first step that has not been done
    identity:      what decides the trajectory (data, tokenizer, template, seed, …), by name
    best_step, best_value: the best evaluation so far, and its figure (`evaluation.best_by`)
    num_since_best: evaluations since then
    evaluated:     the step of the last evaluation; None where an older version did not note it
    scaler:        the gradient scaler's state, empty unless fp16
    num_skipped:   steps passed over because their loss or gradient was not finite
    recent_losses: those of the last steps, which a spike is held against
    """

    next_step: int
    identity: dict[str, Any]
    best_step: int | None = None
    best_value: float | None = None
    num_since_best: int = 0
    evaluated: int | None = None
    scaler: dict[str, Any] = field(default_factory=dict[str, Any])
    num_skipped: int = 0
    recent_losses: list[float] = field(default_factory=list[float])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found complete and undamaged."""

    folder: Path
    state: TrainingState


class CheckpointManager:
    """Saves checkpoints under `folder`, keeps the `keep` newest and the best, finds the newest intact one.

    ranks:      the processes of the run; each must call every method.
    background: `save` returns when all is copied to host memory; what fails later is raised by `check`,
                `wait` or the next `save`.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, ranks: Ranks = ALONE, background: bool = False):
        assert keep >= 1, "at least the newest checkpoint is kept"
        self.ranks = ranks
        self.folder = Path(folder)
        self.keep = keep
        self._background = Background(ranks) if background else None
        self._ranks_apart: Ranks | None = None if background else ranks

    def save(self, state: TrainingState, *, policy: PolicyModel, optimizer: torch.optim.Optimizer) -> Path:
        """Writes the checkpoint of step `state.next_step − 1`; then removes those no longer kept.

        Raises FinetoothError where the disk has no room or cannot be trusted, NonFiniteError where a value is
        infinite or not a number; the checkpoints that were there then stay.
        """
        if self._background is not None:
            self._background.wait()  # one copy in memory at a time
        contents = self.gather(state, policy=policy, optimizer=optimizer)
        if self._ranks_apart is None:
            self._ranks_apart = self.ranks.apart()
        path = self.path_of(state.next_step - 1)
        if self._background is None:
            self._write(path, contents, state.best_step)
        else:
            self._background.start(lambda: self._write(path, contents, state.best_step))
        return path

    def gather(
        self, state: TrainingState, *, policy: PolicyModel, optimizer: torch.optim.Optimizer
    ) -> Contents:
        """What a checkpoint holds, in host memory: a copy where it is written in the background."""
        copy = self._background is not None
        texts = {_STATE: json.dumps(asdict(state), indent=1).encode()} if self.ranks.is_first else {}
        return (
            gather_policy(policy, self.ranks, copy=copy)
            | gather_tensors(_optimizer_tensors(policy, optimizer), "optimizer", self.ranks, copy=copy)
            | Contents({}, texts, 0)
        )

    def check(self) -> None:
        """Raises what a save in the background has raised by now."""
        if self._background is not None:
            self._background.check()

    def wait(self) -> None:
        """Returns when everything is on the disk; raises what a save in the background has raised."""
        if self._background is not None:
            self._background.wait()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """At its end all is on the disk, also where it ends with an error, which is the one that is told."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                if self._background is not None:
                    # Other ranks may be gone, and what needs them would never end.
                    self._background.wait(None if self.ranks.world_size == 1 else _PATIENCE_SECONDS)
            raise
        self.wait()

    def latest(self, *, notify: Callable[[str], object], must: bool = True) -> Checkpoint | None:
        """The newest checkpoint whose every file is as it was written; None where there is none.

        notify: is told of each damaged one that is passed over.
        must:   whether it is an error, rather than none, that all of them are damaged.
        Raises FinetoothError for that.
        """
        damaged: list[tuple[Path, str]] = []
        for number in reversed(self._numbers()):
            folder = self.path_of(number)
            damages = self._damages(folder)
            if not damages:
                for place, fact in damaged:
                    notify(problem(place, fact, "the checkpoint before it is used"))
                return Checkpoint(folder, read_state(folder))
            damaged.append((folder, f"damaged: {damages[0]}"))
        if not must:
            for place, fact in damaged:
                notify(problem(place, fact, "the run starts anew"))
        elif damaged:
            remedy = "restore it, or start the run anew with --resume auto"
            raise FinetoothError(problem(place, fact, remedy) for place, fact in damaged)
        return None

    def _damages(self, folder: Path) -> list[str]:
        """What is wrong with a checkpoint; each rank reads some of its files."""
        mine = check_folder(folder, share=(self.ranks.rank, self.ranks.world_size))
        return sorted({line for text in self.ranks.texts(json.dumps(mine)) for line in json.loads(text)})

    def set_aside_after(self, step: int, *, best_step: int | None) -> list[Path]:
        """Renames the checkpoints of later steps, which a run that goes on behind `step` will make again.

        They are damaged, or of a course that was left; as aside-step-000200 they stay until removed by hand.
        Returns their new places on rank 0.
        """
        moved: list[Path] = []
        with self.ranks.agreeing("looking through checkpoints"):
            for number in self._numbers() if self.ranks.is_first else ():
                if number > step:
                    path = self.path_of(number)
                    aside = path.with_name(f"aside-{path.name}")
                    with told_plainly(aside):
                        if aside.exists():
                            remove_folder(aside)
                        path.rename(aside)
                    moved.append(aside)
            if self.ranks.is_first and self.folder.is_dir():
                self._remove_leftovers()
                self._point_best(best_step)
        return moved

    def path_of(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether there is one or not."""
        return self.folder / f"step-{step:06d}"

    def holds(self, step: int | None) -> bool:
        """Whether there is a checkpoint of this step."""
        return step is not None and self.path_of(step).is_dir()

    def _write(self, path: Path, contents: Contents, best_step: int | None) -> None:
        """Makes the checkpoint appear, then what depends on it: the older ones go when it is there."""
        assert self._ranks_apart is not None, "`save` has opened it"
        written: dict[str, FileEntry] = {}
        if self.ranks.is_first:
            self._remove_leftovers()
        with told_plainly(path, num_bytes=contents.num_bytes):
            with common_folder(path, self._ranks_apart, written=written, replace=True) as folder:
                written |= write_contents(contents, folder, self.ranks)
            if self.ranks.is_first:
                self._point_best(best_step)
                self._remove_old(best_step)

    def _remove_leftovers(self) -> None:
        """Removes what a killed process was writing or removing; a run alone writes into its folder."""
        for pattern in (".step-*.partial-*", ".best.new"):
            for leftover in self.folder.glob(pattern):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)

    def _remove_old(self, best_step: int | None) -> None:
        for number in self._numbers()[: -self.keep]:
            if number != best_step:
                remove_folder(self.path_of(number))

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(
            int(match[1]) for entry in self.folder.iterdir() if (match := _NAME.fullmatch(entry.name))
        )

    def _point_best(self, step: int | None) -> None:
        """Points the link at the best checkpoint; one that points at nothing goes."""
        link, new_link = self.folder / "best", self.folder / ".best.new"
        if self.holds(step):
            assert step is not None
            new_link.unlink(missing_ok=True)
            new_link.symlink_to(self.path_of(step).name)
            new_link.replace(link)
        elif not link.exists():
            link.unlink(missing_ok=True)


def is_state(file_name: str) -> bool:
    """Whether a file of a checkpoint is about the run, and not a part of the policy."""
    return file_name in (_STATE, MANIFEST_NAME) or file_name.startswith("optimizer")


def read_state(folder: Path) -> TrainingState:
    """The state that a checkpoint's folder holds; also that of an older version."""
    fields = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if "best_dev_loss" in fields:
        fields["best_value"] = fields.pop("best_dev_loss")
    return TrainingState(**fields)


def restore_optimizer(
    checkpoint: Checkpoint, *, policy: PolicyModel, optimizer: torch.optim.Optimizer
) -> None:
    """Gives the optimiser the state it had when the checkpoint was saved, bit for bit.

    Where the ranks share the parameters, each reads only its part.
    Raises FinetoothError for a file that is none, though the manifest vouches for it.
    """
    parameters = dict(policy.model.named_parameters())
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for file in sorted(checkpoint.folder.glob("optimizer*.safetensors")):
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118 - no dictionary
                key, _, parameter_name = name.partition(".")
                parameter = parameters[parameter_name]
                if id(parameter) in trained:
                    optimizer.state[parameter][key] = read_like(opened.get_slice(name), parameter)
                    settle_states(optimizer, parameter)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        fact = f"no optimiser state: {error}"
        raise FinetoothError(
            problem(file, fact, "remove this checkpoint; the one before it is used")
        ) from error


def _optimizer_tensors(policy: PolicyModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in policy.model.named_parameters()}
    return {
        f"{key}.{names[parameter]}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
