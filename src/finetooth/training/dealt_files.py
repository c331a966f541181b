"""What a folder with a policy holds: gathered in host memory first, then written, each rank its own files.

Where the ranks share the parameters, tensor by tensor every rank is given the whole, and the one with the
fewest bytes so far keeps it; so no rank ever holds the whole model, and the files are those of any sharded
checkpoint:

    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors  model.safetensors.index.json

All ranks write into one folder, so it must lie on a file system that they share.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from finetooth.base.distributed import Ranks
from finetooth.base.errors import NonFiniteError, problem
from finetooth.base.files import FileEntry, new_folder, require_space, write_proved
from finetooth.model.policy import PolicyModel
from finetooth.training.tensor_files import write_tensors


@dataclass(frozen=True, slots=True)
class Contents:
    """Files of a folder, in host memory.

    tensors:   by file and name, what this rank writes
    texts:     by file, what rank 0 writes
    num_bytes: of the tensors of all ranks
    """

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    texts: Mapping[str, bytes]
    num_bytes: int

    def __or__(self, other: "Contents") -> "Contents":
        return Contents(
            {**self.tensors, **other.tensors},
            {**self.texts, **other.texts},
            self.num_bytes + other.num_bytes,
        )


@contextlib.contextmanager
def common_folder(
    path: Path, ranks: Ranks, *, written: dict[str, FileEntry], replace: bool = False
) -> Iterator[Path]:
    """As `new_folder`, for all ranks at once: each may write into what it yields.

    written: entries of files that a rank has proved to be on the disk; the block adds to them.
    """
    with contextlib.ExitStack() as stack:
        name = ""
        with ranks.agreeing(f"creating {path}"):
            if ranks.is_first:
                name = str(stack.enter_context(new_folder(path, replace=replace, written=written)))
        folder = Path(ranks.texts(name)[0])
        with ranks.agreeing(f"writing {path}"):
            yield folder
        for text in ranks.texts(json.dumps(written)):
            written |= {file: (size, sha256) for file, (size, sha256) in json.loads(text).items()}
        with ranks.agreeing(f"completing {path}"):
            stack.close()


def save_policy(policy: PolicyModel, folder: Path, ranks: Ranks) -> dict[str, FileEntry]:
    """Writes config.json, generation_config.json and safetensors, as plain transformers loads them."""
    return write_contents(gather_policy(policy, ranks), folder, ranks)


def gather_policy(policy: PolicyModel, ranks: Ranks, *, copy: bool = False) -> Contents:
    """Parameters and settings of a policy, or of its adapter; every rank must ask.

    copy: the tensors stay as they are now when the policy is trained on.
    """
    _reshard(policy)
    if policy.adapter is not None:
        tensors = policy.adapter.tensors()
        contents = gather_tensors(tensors, "adapter_model", ranks, copy=copy, in_one_file=True)
        return contents | Contents({}, policy.settings_files() if ranks.is_first else {}, 0)
    state = _state_of(policy)
    if differs_on_disk(policy):
        # Names or shapes on disk are others than in memory, and several tensors may become one.
        whole = gather_whole(policy, ranks, copy=copy)
        num_bytes = sum(tensor.nbytes for tensor in state.values())
        files = {"model.safetensors": revert_weight_conversion(policy.model, whole)} if ranks.is_first else {}
        contents = Contents(files, {}, num_bytes)
    else:
        contents = gather_tensors(state, "model", ranks, copy=copy)
    return contents | Contents({}, policy.settings_files() if ranks.is_first else {}, 0)


def gather_whole(policy: PolicyModel, ranks: Ranks, *, copy: bool = False) -> dict[str, torch.Tensor]:
    """All parameters and persistent buffers in rank 0's host memory, none in that of others; all must ask."""
    return {
        name: _on_host(tensor, copy=copy, keep=ranks.is_first) for name, tensor in _state_of(policy).items()
    }


def gather_tensors(
    tensors: Mapping[str, torch.Tensor],
    stem: str,
    ranks: Ranks,
    *,
    copy: bool = False,
    in_one_file: bool = False,
) -> Contents:
    """Tensors for one file where no rank holds only parts, else for one file per rank and an index.

    in_one_file: rank 0 writes all, also where ranks hold parts.

    Every rank must give the same names in the same order.
    """
    is_dealt = not in_one_file and any(isinstance(tensor, DTensor) for tensor in tensors.values())
    num_files = ranks.world_size if is_dealt else 1
    num_bytes = [0] * num_files
    writers: dict[str, int] = {}
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        writer = writers[name] = num_bytes.index(min(num_bytes))
        num_bytes[writer] += tensor.nbytes
        host = _on_host(tensor, copy=copy, keep=writer == ranks.rank)
        if writer == ranks.rank:
            kept[name] = host
    if num_files == 1:
        return Contents({f"{stem}.safetensors": kept} if ranks.is_first else {}, {}, num_bytes[0])
    files = [f"{stem}-{rank + 1:05d}-of-{num_files:05d}.safetensors" for rank in range(num_files)]
    index = {
        "metadata": {"total_size": sum(num_bytes)},
        "weight_map": {name: files[writer] for name, writer in writers.items()},
    }
    texts = {f"{stem}.safetensors.index.json": json.dumps(index, indent=1).encode()}
    return Contents({files[ranks.rank]: kept}, texts if ranks.is_first else {}, sum(num_bytes))


def write_contents(contents: Contents, folder: Path, ranks: Ranks) -> dict[str, FileEntry]:
    """Writes what this rank writes and reads it back; returns the files' entries for the manifest.

    Raises FinetoothError where the disk has no room, and NonFiniteError, before anything is written, where a
    value is infinite or not a number.
    """
    if ranks.is_first:
        require_space(folder, contents.num_bytes)
    for tensors in contents.tensors.values():
        _refuse_non_finite(tensors, folder)
    written = {file: write_proved(folder / file, [text]) for file, text in contents.texts.items()}
    return written | {
        file: write_tensors(folder / file, tensors) for file, tensors in contents.tensors.items()
    }


def _reshard(policy: PolicyModel) -> None:
    """Gives up what a forward pass has gathered: some parameters would be whole or empty."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            cast(FSDPModule, module).reshard()


def _state_of(policy: PolicyModel) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, each once, as this rank holds them."""
    _reshard(policy)
    state = dict(policy.model.named_parameters())
    persistent = policy.model.state_dict().keys()
    return state | {name: buffer for name, buffer in policy.model.named_buffers() if name in persistent}


def differs_on_disk(policy: PolicyModel) -> bool:
    """Whether names or shapes in the files are others than in memory."""
    loaded_through = getattr(policy.model, "_weight_conversions", None)
    return bool(loaded_through or get_model_conversion_mapping(policy.model, add_legacy=False))


def _on_host(tensor: torch.Tensor, *, copy: bool, keep: bool) -> torch.Tensor:
    """The whole tensor in host memory where this rank keeps it; where ranks share it, all must ask."""
    whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
    if not keep:
        return torch.empty(0)
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    host = whole.cpu()
    return host.clone() if copy and host.data_ptr() == own.data_ptr() else host


def _refuse_non_finite(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    broken = [
        name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if broken:
        more = f" and {len(broken) - 1} more tensors" if len(broken) > 1 else ""
        fact = f"{broken[0]}{more} would hold a value that is not finite"
        remedy = "the checkpoint before it is good: go on from there with a lower training.learning_rate"
        raise NonFiniteError(problem(folder.parent, fact, remedy))
