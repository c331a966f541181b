"""CheckpointManager: rolling, verified checkpoints in `checkpoints/step-000200/`.

    config.json, generation_config.json, *.safetensors    the parameters, as transformers loads them
    optimizer.safetensors    "exp_avg.model.norm.weight", "step.model.norm.weight", …
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
from safetensors.torch import load_file, save_file

from finetooth.base.errors import FinetoothError, problem
from finetooth.base.files import check_folder, new_folder
from finetooth.model.policy import PolicyModel

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
    """Saves checkpoints under `folder`, keeps the `keep` newest and the best, finds the newest intact one."""

    def __init__(self, folder: str | Path, *, keep: int = 3):
        assert keep >= 1, "at least the newest checkpoint is kept"
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: TrainingState, *, policy: PolicyModel, optimizer: torch.optim.Optimizer) -> Path:
        """Writes the checkpoint of step `state.next_step − 1`; then removes those no longer kept."""
        path = self._path(state.next_step - 1)
        with new_folder(path, replace=True) as folder:
            policy.save_pretrained(folder)
            save_file(_optimizer_tensors(policy, optimizer), folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        self._point_best(state.best_step)
        for number in self._numbers()[: -self.keep]:
            if number != state.best_step:
                shutil.rmtree(self._path(number))
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
    tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    names = {parameter: name for name, parameter in policy.model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            suffix = "." + names[parameter]
            state = {
                key.removesuffix(suffix): tensor for key, tensor in tensors.items() if key.endswith(suffix)
            }
            state = {key: tensor for key, tensor in state.items() if "." not in key}
            if state:  # a parameter that never had a gradient has none
                optimizer.state[parameter] = {
                    key: tensor.to(parameter.device) for key, tensor in state.items()
                }


def _optimizer_tensors(policy: PolicyModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in policy.model.named_parameters()}
    return {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
