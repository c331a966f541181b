"""How tensors of one layout become those of another: small steps, each of which can be undone exactly.

A step takes the tensors of an entry of a key map and gives others, moving numbers only. All act on the first
dimension, so that a matrix and its bias go through the same steps. They also work on the meta device, where
only shapes are computed: that is how the shapes a file must have are found.

Shapes: O outputs, D inputs of a matrix; F features of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Tensors = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What patterns and steps count by."""

    layers: int
    heads: int
    kv_heads: int


class Step(Protocol):
    """One way of rearranging tensors, and its inverse."""

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """From the layout of the file to that of transformers."""
        ...

    def back(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """From the layout of transformers to that of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Transpose:
    """[O, D] ↔ [D, O]: GPT-2 of transformers multiplies from the other side."""

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return [tensor.T for tensor in tensors]

    back = forward


@dataclass(frozen=True, slots=True)
class Split:
    """The last tensor ↔ so many of equal size, one below the other in it; those before it stay."""

    num_parts: int

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return [*tensors[:-1], *tensors[-1].chunk(self.num_parts)]

    def back(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return [*tensors[: -self.num_parts], torch.cat(tensors[-self.num_parts :])]


@dataclass(frozen=True, slots=True)
class JoinHeads:
    """So many tensors per head ↔ one: first those of the first kind of all heads, then of the second, …"""

    num_kinds: int

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return [torch.cat(tensors)]

    def back(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return list(tensors[0].chunk(self.num_kinds * sizes.heads))


@dataclass(frozen=True, slots=True)
class SplitWithinHeads:
    """One tensor, in which each head has its parts in turn ↔ one tensor per part, head after head."""

    num_parts: int

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        per_head = tensors[0].unflatten(0, (sizes.heads, self.num_parts, -1))
        return [part.flatten(0, 1) for part in per_head.unbind(1)]

    def back(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        per_head = [tensor.unflatten(0, (sizes.heads, -1)) for tensor in tensors]
        return [torch.stack(per_head, dim=1).flatten(0, 2)]


@dataclass(frozen=True, slots=True)
class HalfRotary:
    """Features that rotate in pairs (0, 1), (2, 3), … ↔ in pairs (0, F/2), (1, F/2 + 1), … within each head.

    The first tensor is that of the queries, the second that of the keys; what follows stays.
    """

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return self._permuted(tensors, sizes, lambda pairs: pairs.unflatten(1, (-1, 2)))

    def back(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return self._permuted(tensors, sizes, lambda pairs: pairs.unflatten(1, (2, -1)))

    def _permuted(self, tensors: Tensors, sizes: Sizes, in_pairs: "_Rearranging") -> Tensors:
        permuted = [
            in_pairs(tensor.unflatten(0, (heads, -1))).transpose(1, 2).flatten(0, 2)
            for tensor, heads in zip(tensors, (sizes.heads, sizes.kv_heads), strict=False)
        ]
        return [*permuted, *tensors[len(permuted) :]]


class _Rearranging(Protocol):
    def __call__(self, pairs: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Shared:
    """Two names of the file for one tensor (a head tied to the embedding) ↔ that tensor.

    `forward` raises ValueError where the two differ.
    """

    def forward(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        first, second = tensors
        if not torch.equal(first, second):
            raise ValueError("differ, and the settings say that they are one")
        return [first]

    def back(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        return [tensors[0], tensors[0]]


def go_forward(steps: Sequence[Step], tensors: Tensors, sizes: Sizes) -> Tensors:
    """All steps in turn, from the layout of the file to that of transformers."""
    for step in steps:
        tensors = step.forward(tensors, sizes)
    return tensors


def go_back(steps: Sequence[Step], tensors: Tensors, sizes: Sizes) -> Tensors:
    """All steps undone, the last one first."""
    for step in reversed(steps):
        tensors = step.back(tensors, sizes)
    return tensors
