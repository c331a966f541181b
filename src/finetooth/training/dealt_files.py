"""Files of a policy whose parameters the ranks share: whole tensors, dealt to the ranks as writers.

Tensor by tensor every rank is given the whole, and the one with the fewest bytes so far keeps it; then each
writes what it kept. So no rank ever holds the whole model, and the files are those of any sharded checkpoint:

    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors  model.safetensors.index.json

All ranks write into one folder, so it must lie on a file system that they share.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers.conversion_mapping import get_model_conversion_mapping

from finetooth.base.distributed import Ranks
from finetooth.base.files import new_folder
from finetooth.model.policy import PolicyModel


@contextlib.contextmanager
def common_folder(path: Path, ranks: Ranks, *, replace: bool = False) -> Iterator[Path]:
    """As `new_folder`, for all ranks at once: each may write into what it yields."""
    with contextlib.ExitStack() as stack:
        name = ""
        with ranks.agreeing(f"creating {path}"):
            if ranks.is_first:
                name = str(stack.enter_context(new_folder(path, replace=replace)))
        folder = Path(ranks.texts(name)[0])
        with ranks.agreeing(f"writing {path}"):
            yield folder
        with ranks.agreeing(f"completing {path}"):
            stack.close()


def save_policy(policy: PolicyModel, folder: Path, ranks: Ranks) -> None:
    """Writes config.json, generation_config.json and safetensors, as plain transformers loads them."""
    parameters = dict(policy.model.named_parameters())
    if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        if ranks.is_first:
            policy.save_pretrained(folder)
        return
    if get_model_conversion_mapping(policy.model, add_legacy=False):
        # Names or shapes on disk are others than in memory, and several tensors may become one.
        state = {name: _whole(tensor) for name, tensor in policy.model.state_dict().items()}
        if ranks.is_first:
            policy.save_pretrained(folder, state=state)
        return
    persistent = {name: b for name, b in policy.model.state_dict().items() if name not in parameters}
    buffers = {name: b for name, b in persistent.items() if not isinstance(b, DTensor)}
    save_tensors({**parameters, **buffers}, folder, "model", ranks)
    if ranks.is_first:
        policy.save_settings(folder)


def save_tensors(tensors: Mapping[str, torch.Tensor], folder: Path, stem: str, ranks: Ranks) -> None:
    """Writes tensors under their names, into one file where no rank holds only parts, else into one per rank.

    Every rank must give the same names in the same order.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        if ranks.is_first:
            save_file(dict(tensors), folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    num_bytes = [0] * ranks.world_size
    writers: dict[str, int] = {}
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        writer = num_bytes.index(min(num_bytes))
        whole = _whole(tensor)
        num_bytes[writer] += whole.nbytes
        writers[name] = writer
        if writer == ranks.rank:
            kept[name] = whole.contiguous()
    files = [
        f"{stem}-{rank + 1:05d}-of-{ranks.world_size:05d}.safetensors" for rank in range(ranks.world_size)
    ]
    save_file(kept, folder / files[ranks.rank], metadata={"format": "pt"})
    if ranks.is_first:
        index = {
            "metadata": {"total_size": sum(num_bytes)},
            "weight_map": {name: files[writer] for name, writer in writers.items()},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()
