"""What one family is: a small model with random weights that matter, and inputs to call it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .weights import redraw

#: Positional and keyword arguments of one call.
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Missing(Exception):
    """The library that is installed does not have this model."""


@dataclass(frozen=True)
class Family:
    """A small model and its inputs; both are deterministic.

    Attributes:
        make: builds the model; its weights are drawn again afterwards (see `weights`).
        example: makes the arguments of one call (a tuple: positional ones, a dict: keyword ones) from a generator.
        keep: patterns of the names of parameters whose first values are kept: decay rates, say.
        idle: patterns of the names of parameters that cannot change the output, whatever their values.
        fixed: the positions of floating-point outputs that do not depend on the inputs.
        trace: how `split` gets its graph: "export", or "dynamo" where torch.export refuses the model.
        bitwise: whether the exported program gives the bits of the model itself; torch.export may choose other kernels.
        by_aot_eager: whether the stages of the backend are run by ``aot_eager``.
        by_inductor: whether they are compiled by inductor too.
        by_pipeline: whether the model runs as a pipeline too.
        tolerance: the largest difference to eager, relative to the largest value of an output.
        settings: settings of ``torch._dynamo.config`` under which the model compiles.
        why: why a field is not at its default.
        source: where the model comes from: its class in transformers, or "torch.nn".
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[Generator], tuple[Any, ...] | dict[str, Any]]
    keep: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    fixed: tuple[int, ...] = ()
    trace: str = "export"
    bitwise: bool = True
    by_aot_eager: bool = True
    by_inductor: bool = False
    by_pipeline: bool = False
    tolerance: float = 1e-5
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    source: str = "torch.nn"

    def build(self) -> nn.Module:
        """The model in eval mode, its weights drawn so that each of them matters. The global random state is as before.

        Raises:
            Missing: the library does not have it.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return redraw(self.make().eval(), self.keep)

    def inputs(self, seed: int) -> Call:
        """New arguments for one call; other seeds give others of the same shapes."""
        example = self.example(torch.Generator().manual_seed(seed + 1))
        return (example, {}) if isinstance(example, tuple) else ((), example)


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, in order, whatever holds them."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [tensor for value in result.values() for tensor in tensors(value)]
    if isinstance(result, list | tuple):
        return [tensor for value in result for tensor in tensors(value)]
    return []
