"""Look for an order of the atoms that needs fewer or smaller partitions than trace order; never a worse one.

Terms
-----
executed order
    The order that runs: partition after partition, and inside each the atoms in trace order. A plan over any other
    order is put into it and measured again before it is compared.
measure
    (partitions, bytes of the largest, bytes received from other partitions), compared in this order, or with the bytes
    received before the largest (``traffic``). An atom that alone exceeds the budget does not count for the largest.

Before (two branches of weights a, a and b, b, interleaved; a partition holds two weights)::

    trace order  a1 b1 | a2 b2     k = 2, both partitions read both weights

After::

    executed     a1 a2 | b1 b2     k = 2, each reads one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .chain import Chain, IntArray
from .downsets import search_downsets
from .orders import HEURISTICS
from .pareto import Tradeoff
from .window import interval

# Beyond so many atoms only trace order is planned: the search would take longer than the rest of the planner.
MAX_ATOMS = 20_000


class Tried(NamedTuple):
    """What was searched.

    Attributes:
        searched: orders that were planned, trace order included, and downsets.
        exhaustive: whether no topological order has a plan of a better measure.
    """

    searched: int
    exhaustive: bool


class Reordered(NamedTuple):
    """A plan over the order in which its atoms run.

    Attributes:
        order: the atom to run at each place; ``range(num_atoms)`` where nothing better than trace order was found.
        boundaries: places ``[0, ..., num_atoms]``.
        tried: what was searched.
    """

    order: list[int]
    boundaries: list[int]
    tried: Tried


def search_order(
    chain: Chain,
    predecessors: Sequence[Sequence[int]],
    budget: int,
    solve: Callable[[Chain], list[int]],
    *,
    traffic: bool = False,
) -> Reordered:
    """The best plan found over all orders tried; trace order's own unless another is strictly better.

    Args:
        chain: in trace order.
        predecessors: of each atom the atoms that must run before it, all smaller (`precedence.atom_predecessors`).
        budget: bytes of one device.
        solve: the boundaries of the best plan within the budget over a chain's own order.
        traffic: whether fewer bytes received come before a smaller largest; then no search is exhaustive.

    Example::

        >>> chain = separate(3, 3, 1, 1)  # four atoms, each with a weight of its own
        >>> search_order(chain, [[], [], [], []], 4, lambda c: dp(c, 4))
        Reordered(order=[0, 2, 1, 3], boundaries=[0, 2, 4], tried=Tried(searched=16, exhaustive=True))
    """
    identity = list(range(chain.num_atoms))
    boundaries = solve(chain)
    # One partition runs in trace order whatever comes first, and in a graph that is a chain nothing can.
    if len(boundaries) <= 2 or all(a in found for a, found in enumerate(predecessors[1:])):
        return Reordered(identity, boundaries, Tried(1, True))
    if chain.num_atoms > MAX_ATOMS:
        return Reordered(identity, boundaries, Tried(1, False))
    best = measure(chain, boundaries, budget)
    assert best is not None, "a plan of more than the budget"
    result = (identity, boundaries)

    def rank(found: Tradeoff) -> tuple[int, int, int]:
        return (found[0], found[2], found[1]) if traffic else found

    def consider(order: list[int], places: list[int]) -> None:
        nonlocal best, result
        executed = [atom for a, b in pairwise(places) for atom in sorted(order[a:b])]
        found = measure(permuted(chain, executed), places, budget)
        if found is not None and best is not None and rank(found) < rank(best):
            best, result = found, (executed, places)

    found = search_downsets(chain, predecessors, budget, most=best[0])
    searched = 1
    if found is not None:
        order = [atom for part in found.parts for atom in part]
        consider(order, np.cumsum([0, *map(len, found.parts)]).tolist())
        if found.exact and not traffic:
            return Reordered(*result, Tried(found.num_downsets, True))
        consider(order, solve(permuted(chain, order)))  # boundaries inside groups may be better
        searched += found.num_downsets
    for heuristic in HEURISTICS.values():
        order = heuristic(chain, predecessors)
        consider(order, solve(permuted(chain, order)))
    order, _ = result
    if order != identity:  # boundaries over the order as it runs may be better still
        consider(order, solve(permuted(chain, order)))
    return Reordered(*result, Tried(searched + len(HEURISTICS), False))


def measure(chain: Chain, boundaries: Sequence[int], budget: int) -> Tradeoff | None:
    """The measure of a plan over a chain's own order; None if a partition of several atoms exceeds the budget."""
    largest = received = 0
    starts: list[int] = chain.atom_start[list(boundaries)].tolist()
    for (a, b), (i, j) in zip(pairwise(boundaries), pairwise(starts), strict=True):
        held = interval(chain, i, j)
        received += held.recv_bytes
        if held.total <= budget:
            largest = max(largest, held.total)
        elif b - a > 1:
            return None
    return Tradeoff(len(boundaries) - 1, largest, received)


def permuted(chain: Chain, order: Sequence[int]) -> Chain:
    """The chain whose atom at place i is atom ``order[i]``; values and weights keep their numbers. Linear."""
    atoms = np.array(order, dtype=np.int64)
    lengths = np.diff(chain.atom_start)
    steps = _rows(chain.atom_start, atoms)
    place = np.empty(chain.num_steps + 1, dtype=np.int64)
    place[steps] = np.arange(chain.num_steps)
    place[-1] = -1  # where value_def == -1 looks
    touches, reads = _rows(chain.touch_start, steps), _rows(chain.weight_start, steps)
    return replace(
        chain,
        atom_start=_starts(lengths[atoms]),
        workspace=chain.workspace[steps],
        value_def=place[chain.value_def],
        touch_start=_starts(np.diff(chain.touch_start)[steps]),
        touch_value=chain.touch_value[touches],
        weight_start=_starts(np.diff(chain.weight_start)[steps]),
        weight_id=chain.weight_id[reads],
        weight_touch_bytes=chain.weight_touch_bytes[reads],
        atom_key=None if chain.atom_key is None else chain.atom_key[atoms],
    )


def _starts(lengths: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def _rows(start: IntArray, rows: IntArray) -> IntArray:
    """The entries of compressed rows, the given rows one after another."""
    lengths = np.diff(start)[rows]
    offset = np.repeat(start[:-1][rows] - (np.cumsum(lengths) - lengths), lengths)
    return offset + np.arange(len(offset))
