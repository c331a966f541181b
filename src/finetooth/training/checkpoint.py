"""CheckpointManager: rolling, verified checkpoints in `checkpoints/step-000200/`.

    config.json, generation_config.json, *.safetensors    the parameters, as transformers loads them
    optimizer.safetensors    "exp_avg.model.norm.weight", "step.model.norm.weight", …; several files where the
                             ranks share the parameters
    state.json               next_step, what the run is of, the best evaluation, the fp16 loss scale
    MANIFEST.json            size and SHA-256 of every file, written last

`best` is a link to the checkpoint with the lowest dev loss. No pickle, and no state of random number
generators: every draw follows from (seed, step).
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, distribute_tensor

from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import FinetoothError, problem
from finetooth.base.files import check_folder
from finetooth.model.policy import PolicyModel
from finetooth.training.dealt_files import common_folder, save_policy, save_tensors

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a resumed run needs besides parameters and optimiser.

    next_step:     the first step that has not been done
    identity:      what decides the trajectory (data, tokenizer, template, seed, …), by name
    best_step, best_dev_loss: the best evaluation so far
    scaler:        the gradient scaler's state, empty unless fp16
    """

    next_step: int
    identity: dict[str, Any]
    best_step: int | None = None
    best_dev_loss: float | None = None
    scaler: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found complete and undamaged."""

    folder: Path
    state: TrainingState


class CheckpointManager:
    """Saves checkpoints under `folder`, keeps the `keep` newest and the best, finds the newest intact one.

    ranks: the processes of the run; each must call `save`.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, ranks: Ranks = ALONE):
        assert keep >= 1, "at least the newest checkpoint is kept"
        self.ranks = ranks
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: TrainingState, *, policy: PolicyModel, optimizer: torch.optim.Optimizer) -> Path:
        """Writes the checkpoint of step `state.next_step − 1`; then removes those no longer kept."""
        path = self._path(state.next_step - 1)
        with common_folder(path, self.ranks, replace=True) as folder:
            save_policy(policy, folder, self.ranks)
            save_tensors(_optimizer_tensors(policy, optimizer), folder, "optimizer", self.ranks)
            if self.ranks.is_first:
                (folder / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        if self.ranks.is_first:
            self._point_best(state.best_step)
            self._remove_old(state.best_step)
        return path

    def latest(self, *, notify: Callable[[str], object]) -> Checkpoint | None:
        """The newest checkpoint whose every file is as it was written; None where there is none.

        notify: is told of each damaged one that is passed over.
        Raises FinetoothError where there are checkpoints, and all are damaged.
        """
        damaged: list[tuple[Path, str]] = []
        for number in reversed(self._numbers()):
            folder = self._path(number)
            damages = check_folder(folder)
            if not damages:
                fields = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                for place, fact in damaged:
                    notify(problem(place, fact, "the checkpoint before it is used"))
                return Checkpoint(folder, TrainingState(**fields))
            damaged.append((folder, f"damaged: {damages[0]}"))
        if damaged:
            remedy = "restore it, or start the run anew elsewhere"
            raise FinetoothError(problem(place, fact, remedy) for place, fact in damaged)
        return None

    def _remove_old(self, best_step: int | None) -> None:
        for number in self._numbers()[: -self.keep]:
            if number != best_step:
                shutil.rmtree(self._path(number))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(
            int(match[1]) for entry in self.folder.iterdir() if (match := _NAME.fullmatch(entry.name))
        )

    def _point_best(self, step: int | None) -> None:
        if step is None or not self._path(step).exists():
            return
        link, new_link = self.folder / "best", self.folder / ".best.new"
        new_link.unlink(missing_ok=True)
        new_link.symlink_to(self._path(step).name)
        new_link.replace(link)


def restore_optimizer(
    checkpoint: Checkpoint, *, policy: PolicyModel, optimizer: torch.optim.Optimizer
) -> None:
    """Gives the optimiser the state it had when the checkpoint was saved, bit for bit."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.folder.glob("optimizer*.safetensors")):
        tensors |= load_file(file)
    names = {parameter: name for name, parameter in policy.model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            suffix = "." + names[parameter]
            state = {
                key.removesuffix(suffix): tensor for key, tensor in tensors.items() if key.endswith(suffix)
            }
            state = {key: tensor for key, tensor in state.items() if "." not in key}
            if state:  # a parameter that never had a gradient has none
                optimizer.state[parameter] = {key: _placed(state[key], parameter) for key in state}


def _placed(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the optimiser's state on the parameter's device; this rank's part where ranks share it."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _optimizer_tensors(policy: PolicyModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in policy.model.named_parameters()}
    return {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
