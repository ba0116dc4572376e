"""Build the planner's input from a graph's memory and a binding: every symbolic size becomes a number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import sympy

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import LARGEST

from ..capture.symbolic_sizes import Evaluator, Size
from ..constraints.atoms import Atoms
from ..footprint.graph_memory import GraphMemory
from .chain import Chain


def lay_out(
    memory: GraphMemory, atoms: Atoms, numbers: Mapping[sympy.Symbol, int], *, adds_up: bool = False
) -> Chain:
    """Return the chain of a graph under a binding, in bytes; one lambdified evaluation computes all sizes.

    Workspaces that depend on the processor are measured at these sizes.

    Args:
        adds_up: which footprint the chain has, see `chain`.

    Raises:
        PartitionError: the graph's bytes are more than a plan's arrays can count.
    """
    memory = memory.measured_at(numbers)
    sizes: list[Size] = [value.bytes for value in memory.values]
    sizes += memory.weight_bytes
    for step in memory.steps:
        sizes += step.weights.values()
        sizes += step.workspace
    evaluated = iter(Evaluator(sizes)(numbers))
    value_bytes = [next(evaluated) for _ in memory.values]
    weight_bytes = [next(evaluated) for _ in memory.weight_bytes]
    touch_start, weight_start = [0], [0]
    touch_value: list[int] = []
    weight_id: list[int] = []
    weight_touch: list[int] = []
    workspace: list[int] = []
    for step in memory.steps:
        touch_value += step.values
        touch_start.append(len(touch_value))
        weight_id += step.weights
        weight_touch += [next(evaluated) for _ in step.weights]
        weight_start.append(len(weight_id))
        workspace.append(max(0, *(next(evaluated) for _ in step.workspace)))

    last = [0] * len(memory.values)
    for number, step in enumerate(memory.steps):
        for touched in step.values:
            last[touched] = number
    held = sum(
        size * (1 + (len(memory.steps) if value.returned else end) - max(0, value.made_at))
        for size, value, end in zip(value_bytes, memory.values, last, strict=True)
    )
    # No sum of the planner is larger: no footprint, no total of the bytes that cross boundaries, no partial weights.
    scratch = sum(workspace) if adds_up else max(workspace, default=0)
    _refuse_overflow(held + sum(weight_bytes) + sum(weight_touch) + scratch, numbers)

    def array(numbers: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.asarray(numbers, dtype=np.int64)

    return Chain(
        atom_start=array(list(atoms.starts)),
        workspace=array(workspace),
        value_bytes=array(value_bytes),
        value_def=array([value.made_at for value in memory.values]),
        value_returned=array([int(value.returned) for value in memory.values]),
        touch_start=array(touch_start),
        touch_value=array(touch_value),
        weight_bytes=array(weight_bytes),
        weight_start=array(weight_start),
        weight_id=array(weight_id),
        weight_touch_bytes=array(weight_touch),
        adds_up=adds_up,
    )


def _refuse_overflow(total: int, numbers: Mapping[sympy.Symbol, int]) -> None:
    if total > LARGEST:
        sizes = ", ".join(f"{symbol}={number}" for symbol, number in numbers.items()) or "its sizes"
        raise PartitionError(
            f"with {sizes} the steps of this graph hold 2**{total.bit_length() - 1} bytes, and a plan counts to 2**63; "
            "bind= smaller numbers"
        )
