"""Find the largest batch, and the greatest length, for which given devices hold a model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ..passes.partitioner.contraction import contract
from ..passes.partitioner.mixed_devices import farthest
from .module_graph import ModuleGraph
from .precision import fewest_quantised

#: No search looks beyond it.
LIMIT = 2**24


def largest(
    graph: ModuleGraph, dim: str, bind: Mapping[str, int], budgets: Sequence[int], saved: Sequence[int] = (), *,
    most: int = LIMIT,
) -> int:  # fmt: skip
    """Return the largest size of a dimension for which devices hold a graph; 0 if there is none.

    Footprints do not fall when a size grows, so a bisection finds it.

    Args:
        graph: the graph.
        dim: the dimension: "input_ids.0".
        bind: the sizes of all dimensions; that of ``dim`` does not count.
        budgets: the bytes of each device in order that may be filled.
        saved: the bytes that each piece loses when it is quantised; empty if nothing may be.
        most: the largest size to try.
    """

    def fits(size: int) -> bool:
        chain = graph.chain(graph.memory.symbols.bind({**bind, dim: size}))
        if any(saved):
            return fewest_quantised(chain, saved, budgets) is not None
        return farthest(contract(chain), budgets, sys.maxsize)[0][-1] == chain.num_atoms

    low, high = 0, max(1, bind.get(dim, 1))
    while high < most and fits(high):
        low, high = high, high * 2
    if high >= most:
        if fits(most):
            return most
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
