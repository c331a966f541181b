"""What a run holds in memory, part by part, from sizes alone: an estimate, made before anything is loaded.

What the rehearsal before the first step finds is exact; this can be known without it, to about a fifth.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from finetooth.config.schema import AdapterConfig, TrainingConfig
from finetooth.model.head_chunks import chunk_rows
from finetooth.model.shape import ModelShape

ComputedIn = Literal["fp32", "bf16", "bf16-pure", "fp16"]
Recompute = Literal["nothing", "elementwise", "all-but-attention", "all"]

# Of each setting of training.recompute, how often the features of a layer are kept: those of its feed-forward
# block, its hidden ones, its queries, its keys. Counted in PyTorch's saved tensors of Qwen3, Llama, OLMo 2
# and GPT-2, of which the largest is taken.
KEPT: dict[Recompute, tuple[int, int, int, int]] = {
    "nothing": (4, 6, 5, 4),
    "elementwise": (2, 3, 2, 2),
    "all-but-attention": (0, 1, 1, 0),
    "all": (0, 1, 0, 0),
}
KEPT_OF_COMPILED: tuple[Recompute, ...] = ("nothing", "all")

# Of the parameters in 4 bits, with their scales; of AdamW's two states in 8 bits, with theirs.
_FOUR_BITS = 0.53
_EIGHT_BIT_STATES = 2.03
# Bytes per saved feature where products are computed in 16 bits and norms in float32.
_MIXED = 2.3
# Logits and their logarithms of probabilities, which become the gradient in place, both in float32.
_COPIES_OF_LOGITS = 2
# The head's own gradient, as the loss has taken it and once more as the backward pass scales it.
_COPIES_OF_HEAD = 2
# Python with PyTorch and transformers, as they are resident once a model is loaded.
_LIBRARIES = 400_000_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of each part, on one device.

    copies:      16-bit copies of float32 parameters, which the forward pass makes
    activations: what the backward pass needs of a row
    logits:      of one chunk of targets, with the head's own gradient
    checkpoint:  on a CPU, the copy of parameters and states that is written in the background
    libraries:   on a CPU, the process without all this
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    logits: int
    checkpoint: int
    libraries: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(dataclasses.astuple(self))


def footprint(
    shape: ModelShape,
    training: TrainingConfig,
    adapter: AdapterConfig,
    *,
    precision: ComputedIn,
    device_type: str,
    pass_tokens: int,
    pass_targets: int | None = None,
    recompute: Recompute = "nothing",
    background: bool = True,
) -> Footprint:
    """What a forward and backward pass of so many tokens holds, in the midst of a run.

    pass_targets: how many of them are trained; default: all. background: whether checkpoints are written
    beside the training.
    """
    trained = _num_trained(shape, adapter)
    compute_bytes = 4 if precision == "fp32" else 2
    is_autocast = precision in ("bf16", "fp16")
    own_bytes = 2 if precision == "bf16-pure" else 4
    states = _EIGHT_BIT_STATES if training.optimizer == "adamw_8bit" else 2 * own_bytes
    head = 4 * shape.vocabulary * shape.hidden if adapter.type is None else 0
    num_targets = pass_tokens if pass_targets is None else pass_targets
    num_at_once = min(num_targets, chunk_rows(shape.vocabulary, device_type))
    logits = _COPIES_OF_LOGITS * 4 * num_at_once * shape.vocabulary
    is_on_host = device_type == "cpu"
    return Footprint(
        parameters=_parameter_bytes(shape, adapter, own_bytes, compute_bytes),
        gradients=own_bytes * trained,
        optimizer=int(states * trained),
        copies=2 * trained if is_autocast else 0,
        activations=activation_bytes(shape, precision=precision, recompute=recompute) * pass_tokens,
        logits=max(logits + head, _COPIES_OF_HEAD * head),
        checkpoint=int((own_bytes + states) * trained) if is_on_host and background else 0,
        libraries=_LIBRARIES if is_on_host else 0,
    )


def activation_bytes(shape: ModelShape, *, precision: ComputedIn, recompute: Recompute = "nothing") -> int:
    """What the backward pass needs per token: inputs of norms and products, and what attention keeps.

    Where it recomputes, one layer is there as a whole.
    """
    features = (shape.layers - 1) * _features(shape, recompute) + _features(shape, "nothing")
    return int(features * (4 if precision == "fp32" else _MIXED))


def _features(shape: ModelShape, recompute: Recompute) -> int:
    sizes = (shape.feed_forward, shape.hidden, shape.query_width, shape.key_width)
    return sum(times * size for times, size in zip(KEPT[recompute], sizes, strict=True))


def _num_trained(shape: ModelShape, adapter: AdapterConfig) -> int:
    """Parameters that are trained: all, or the matrices beside every linear layer."""
    if adapter.type is None:
        return shape.num_parameters
    hidden, queries, keys, inner = shape.hidden, shape.query_width, shape.key_width, shape.feed_forward
    sums_of_sides = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    return adapter.r * shape.layers * sums_of_sides


def _parameter_bytes(shape: ModelShape, adapter: AdapterConfig, own_bytes: int, compute_bytes: int) -> int:
    if adapter.type is None:
        return own_bytes * shape.num_parameters
    matrices = own_bytes * _num_trained(shape, adapter)
    if adapter.type != "qlora":
        return compute_bytes * shape.num_parameters + matrices
    embedding = shape.vocabulary * shape.hidden
    return int(_FOUR_BITS * (shape.num_parameters - embedding) + compute_bytes * embedding) + matrices
