"""Gradients of several passes are summed in float32 where parameters are narrower.

The sum of many gradients in bf16 would lose the small ones: beside a sum 256 times as large, a gradient is
less than half a unit in the last place.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class GradientSums:
    """Sums of gradients, outside of the parameters; empty while only one pass makes a step's gradient.

    They take 4 bytes per parameter from the first pass to the last, during which parameters have no gradient.
    Parameters of float32 and wider are left alone: their gradients add up by themselves.
    """

    def __init__(self) -> None:
        self._sums: dict[torch.Tensor, torch.Tensor] = {}

    @contextlib.contextmanager
    def adding(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Gradients of the pass within are added to the sums, each as soon as it is there."""
        narrow = [parameter for parameter in parameters if parameter.requires_grad and _is_narrow(parameter)]
        # FSDP2 gives gradients on another stream; they are safe to use when the pass is over.
        handles = [
            p.register_post_accumulate_grad_hook(self._add) for p in narrow if not isinstance(p, DTensor)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.take(narrow)

    def take(self, parameters: Iterable[torch.Tensor]) -> None:
        """Adds the gradients that these parameters have to the sums, and leaves them none."""
        for parameter in parameters:
            if parameter.grad is not None and _is_narrow(parameter):
                self._add(parameter)

    def give_back(self) -> None:
        """Rounds each sum once and makes it its parameter's gradient, to which the last pass adds."""
        while self._sums:
            parameter, total = self._sums.popitem()
            parameter.grad = total.to(parameter.dtype)

    def clear(self) -> None:
        """Forgets the sums of a step that is not finished."""
        self._sums.clear()

    def _add(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if parameter in self._sums:
            self._sums[parameter] += parameter.grad
        else:
            self._sums[parameter] = parameter.grad.float()
        parameter.grad = None


def _is_narrow(parameter: torch.Tensor) -> bool:
    return parameter.dtype.itemsize < torch.float32.itemsize
