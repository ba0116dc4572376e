"""Call a compiled stage on zeros to measure what it allocates, without changing the model.

Zeros are valid for every kind of input: indices, masks and activations. Weights are the model's own, except that a
weight which the graph writes is copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.fx

from fx_partition.common.errors import PartitionWarning
from fx_partition.passes.capture.symbolic_sizes import evaluate, to_expr
from fx_partition.passes.capture.tensor_storage import span

from ..lowering.graph_context import GraphContext
from .peak_allocation import allocated_bytes


def measured_bytes(
    context: GraphContext,
    call: Callable[..., Any],
    nodes: Sequence[torch.fx.Node],
    inputs: Sequence[Any],
    device: torch.device,
) -> int | None:
    """Return the peak of the bytes that one call of a compiled stage allocates.

    Args:
        context: its graph; symbols have the sizes of the trace.
        call: the compiled stage.
        nodes: the nodes of the graph that its arguments stand for.
        inputs: the values that it was compiled with, one for each node.
        device: the device that it runs on.

    Returns:
        None, with a warning, where the call fails.
    """
    try:
        numbers = context.memory.symbols.bind(None)
        own = context.captured.weights
        arguments = [
            _own(own[node], node.name in context.memory.written, value.device)
            if node in own
            else zeros_of(value, numbers, getattr(value, "device", device))
            for node, value in zip(nodes, inputs, strict=True)
        ]
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return allocated_bytes(lambda: call(*arguments), device)
    except Exception as error:  # the model can run without this figure
        warnings.warn(
            f"the memory that a stage allocates could not be measured: {type(error).__name__}: {error}",
            PartitionWarning,
            stacklevel=2,
        )
        return None


def _own(weight: torch.Tensor, written: bool, device: torch.device) -> torch.Tensor:
    return weight.detach().to(device, copy=True) if written else weight.to(device)


def zeros_of(value: Any, numbers: Mapping[sympy.Symbol, int], device: torch.device) -> Any:
    """Return zeros of the sizes and strides of a fake tensor, and for a symbolic number its number in the trace."""
    if isinstance(value, torch.SymInt):
        return evaluate(to_expr(value), numbers)
    if not isinstance(value, torch.Tensor):
        return value
    sizes, strides = ([evaluate(to_expr(s), numbers) for s in row] for row in (value.shape, value.stride()))
    return torch.zeros(span(sizes, strides), dtype=value.dtype, device=device).as_strided(sizes, strides)
