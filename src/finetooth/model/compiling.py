"""Layers compiled one by one: all layers of a kind share one graph, whatever the rows' lengths.

Where attention is one kernel for all documents of a row, a layer is one graph; elsewhere it is two, with
attention, which reads the documents' lengths, between them.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from finetooth.base.errors import ConfigError, problem

BACKEND = "inductor"


@cache
def compiled_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward function of a kind of layers, compiled at the first call; called with the layer first.

    Lengths of rows and numbers of documents are unknowns of the graph, so that it is compiled once.
    Raises ConfigError, in a call, where it cannot be compiled.
    """
    compiled = torch.compile(forward, backend=BACKEND, dynamic=True)

    @wraps(forward)
    def call(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(layer, *args, **kwargs)
        except TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            fact = f"{type(layer).__name__} cannot be compiled: {reason}"
            raise ConfigError(problem("training.compile", fact, "write false")) from error

    return call
