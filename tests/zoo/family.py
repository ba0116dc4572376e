"""One entry of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def tensors(result: Any) -> list[Tensor]:
    """The tensors to compare: the result itself, or the tensor fields of a transformers output."""
    if isinstance(result, Tensor):
        return [result]
    return [value for value in result.values() if isinstance(value, Tensor)]


def mark_batch(inputs: Inputs) -> Inputs:
    """The inputs, their batch marked dynamic: ``torch.compile(dynamic=None)`` then keeps the other
    sizes static, where ``dynamic=True`` makes symbols of them too. Batches of 1 are compiled apart."""
    args, kwargs = inputs
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            torch._dynamo.mark_dynamic(value, 0)
    return inputs


@dataclass(frozen=True)
class Family:
    """A small model with random weights, and the inputs to call it with.

    ``build`` and ``inputs`` are deterministic: two calls give equal weights and equal inputs.
    ``example`` makes the keyword (or, as a tuple, positional) arguments for a batch size, with random
    numbers from the generator it is handed; the leading dimension of every tensor is the batch.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[int, torch.Generator], tuple[Any, ...] | dict[str, Any]]
    output: Callable[[Any], list[Tensor]] = tensors
    #: one compile, with ``dynamic=True`` or of a marked batch, serves every batch size from 2 up
    dynamic: bool = True
    #: a backward pass through the compiled model works
    train: bool = True
    #: ``torch._dynamo.config`` settings under which ``torch.compile`` makes one graph of a call
    dynamo_config: Mapping[str, Any] = field(default_factory=dict)
    #: why a field above is not at its default, or what else to know before compiling it
    why: str = ""

    def build(self) -> nn.Module:
        """The model, in eval mode. Leaves the global random state as it was.

        Parameters that start constant (biases, scales of norms) are moved off it, or losing one would not
        show in the output.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.make().eval()
            for parameter in model.parameters():
                if parameter.numel() > 1 and parameter.std() == 0:
                    parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    def inputs(self, batch: int, seed: int = 0) -> Inputs:
        """Positional and keyword arguments for one call with ``batch`` examples."""
        example = self.example(batch, torch.Generator().manual_seed(seed))
        return (example, {}) if isinstance(example, tuple) else ((), example)
