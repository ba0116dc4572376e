"""What one entry of the zoo is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def first(result: Any) -> list[Tensor]:
    """The tensor to compare: the result itself, or the first field of a transformers output."""
    return [result if isinstance(result, Tensor) else result[0]]


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
    output: Callable[[Any], list[Tensor]] = first
    #: one ``torch.compile(dynamic=True)`` serves every batch size from 2 up
    dynamic: bool = True
    #: a backward pass through the compiled model works
    train: bool = True
    #: graphs that ``torch.compile`` makes of a call, under ``dynamo_config``
    graphs: int = 1
    #: ``torch._dynamo.config`` settings to patch in while compiling
    dynamo_config: Mapping[str, Any] = field(default_factory=dict)
    #: why a flag above is not at its default
    why: str = ""

    def build(self) -> nn.Module:
        """The model, in eval mode. Leaves the global random state as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()

    def inputs(self, batch: int, seed: int = 0) -> Inputs:
        """Positional and keyword arguments for one call with ``batch`` examples."""
        example = self.example(batch, torch.Generator().manual_seed(seed))
        return (example, {}) if isinstance(example, tuple) else ((), example)
