"""Look for an order of the atoms that needs fewer or smaller partitions than trace order; never a worse one.

Terms
-----
executed order
    The order that runs: partition after partition, and inside each the atoms in trace order. A plan over any other
    order is changed to it and measured again before it is compared. Its oversize atoms must be oversize in trace order:
    an atom of several steps may fit there, and not where a value that it receives is needed later.
measure
    (partitions, bytes of the largest, bytes received from other partitions), compared in this order, or with the bytes
    received before the largest (``traffic``). An atom that alone exceeds the budget does not count for the largest.

Before (two branches of weights a, a and b, b, interleaved; a partition holds two weights)::

    trace order  a1 b1 | a2 b2     k = 2, both partitions read both weights

After::

    executed     a1 a2 | b1 b2     k = 2, each reads one
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..partitioner.chain import Chain
from ..partitioner.dp import dp
from ..partitioner.greedy import fewest_over, oversize_atoms
from ..partitioner.interval_footprint import interval
from ..partitioner.pareto import Tradeoff
from ..partitioner.permute import permuted
from .downsets import search_downsets
from .list_schedules import HEURISTICS
from .order_bound import OrderBound, order_bound
from .order_ends import bound_with_ends
from .piece import Graph, bits
from .resplit import NARROW, resplit
from .rolling_beam import roll

# Up to SMALL atoms, plans from many starts are split again; up to MAX_ROLLED, a beam goes over the graph twice. Beyond
# MAX_ATOMS only trace order is planned.
SMALL = 120
MAX_ROLLED = 8_000
MAX_ATOMS = 200_000
# The number of moves to try for a small graph.
EFFORT = 15_000


class SearchStats(NamedTuple):
    """What was searched, and a bound for all other orders.

    Attributes:
        searched: the number of orders that were planned, trace order included, and of downsets.
        exhaustive: whether no topological order has a plan of a better measure.
        bound: a lower bound on the partitions of any topological order; None if it was not computed.
    """

    searched: int
    exhaustive: bool
    bound: OrderBound | None = None


class OrderedPlan(NamedTuple):
    """A plan over the order in which its atoms run.

    Attributes:
        order: the atoms in the order in which they run; ``range(num_atoms)`` if nothing better than trace order was
            found.
        boundaries: positions ``[0, ..., num_atoms]``.
        tried: what was searched.
    """

    order: list[int]
    boundaries: list[int]
    tried: SearchStats


def search_order(
    chain: Chain,
    predecessors: Sequence[Sequence[int]],
    budget: int,
    solve: Callable[[Chain], list[int]],
    *,
    traffic: bool = False,
) -> OrderedPlan:
    """Return the best plan found over all orders tried; that of trace order unless another is strictly better.

    Args:
        chain: the chain in trace order.
        predecessors: for each atom the atoms that must run before it, all smaller (`dependencies.atom_predecessors`).
        budget: the bytes of one device.
        solve: returns the boundaries of the best plan within the budget over a chain's own order.
        traffic: whether fewer bytes received count before a smaller largest partition; then no search is exhaustive.

    Example: four atoms that do not depend on one another have weights of 3, 3, 1 and 1 bytes. Within 4 bytes trace
    order has three partitions; the order ``[0, 2, 1, 3]`` with the boundaries ``[0, 2, 4]`` has two.
    """
    boundaries = solve(chain)
    # A single partition runs in trace order anyway, and a graph that is a chain has no other order.
    if len(boundaries) <= 2 or all(a in found for a, found in enumerate(predecessors[1:])):
        return OrderedPlan(list(range(chain.num_atoms)), boundaries, SearchStats(1, True))
    if chain.num_atoms > MAX_ATOMS:
        return OrderedPlan(list(range(chain.num_atoms)), boundaries, SearchStats(1, False))
    bound = order_bound(chain, budget)
    best = _Best(chain, budget, traffic, solve, boundaries)
    found = search_downsets(chain, predecessors, budget, most=best.measure[0])
    if found is not None:
        order = [atom for part in found.parts for atom in part]
        is_allowed = best.consider(order, np.cumsum([0, *map(len, found.parts)]).tolist())
        best.searched = found.num_downsets
        if is_allowed and not traffic:
            return OrderedPlan(best.order, best.boundaries, SearchStats(found.num_downsets, True, bound))
    bound = bound_with_ends(chain, predecessors, budget, bound)
    for order in _orders(chain, predecessors, budget):
        best.consider_order(order)
    if chain.num_atoms <= SMALL:
        best.resplit(predecessors, bound.fewest)
    if best.order != list(range(chain.num_atoms)):  # boundaries over the executed order may be better still
        best.consider(best.order, solve(permuted(chain, best.order)))
    return OrderedPlan(best.order, best.boundaries, SearchStats(best.searched, False, bound))


def _orders(chain: Chain, predecessors: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Yield orders that may be better than trace order; for a large graph only those that take linear time."""
    for heuristic in HEURISTICS.values():
        yield heuristic(chain, predecessors)
    if SMALL < chain.num_atoms <= MAX_ROLLED:
        graph = Graph(chain, predecessors)
        for backwards in (False, True):
            yield roll(graph, range(chain.num_atoms), budget, NARROW, 1.0, backwards=backwards)


class _Best:
    """The best plan so far, in its executed order.

    Attributes:
        order, boundaries, measure: those of the plan.
        searched: the number of orders that were planned.
    """

    def __init__(
        self, chain: Chain, budget: int, traffic: bool, solve: Callable[[Chain], list[int]], boundaries: list[int]
    ) -> None:
        self._chain, self._budget, self._traffic, self._solve = chain, budget, traffic, solve
        self.order, self.boundaries = list(range(chain.num_atoms)), boundaries
        self._oversize = {*oversize_atoms(chain, budget)}
        self._planned = {tuple(self.order)}
        self.searched = 1
        found = measure(chain, boundaries, budget)
        assert found is not None, "a plan of more than the budget"
        self.measure = found

    def _rank(self, found: Tradeoff) -> tuple[int, int, int]:
        return (found[0], found[2], found[1]) if self._traffic else found

    def consider(self, order: Sequence[int], places: Sequence[int]) -> bool:
        """Take a plan if it is better in its executed order; return whether that makes no other atom oversize."""
        executed = [atom for a, b in pairwise(places) for atom in sorted(order[a:b])]
        run = permuted(self._chain, executed)
        found = measure(run, places, self._budget)
        if found is None or self._rank(found) >= self._rank(self.measure):
            return True
        if not self._oversize.issuperset(executed[place] for place in oversize_atoms(run, self._budget)):
            return False
        self.measure, self.order, self.boundaries = found, executed, list(places)
        return True

    def consider_order(self, order: Sequence[int]) -> None:
        """Take the best boundaries over an order if their plan is better."""
        if tuple(order) in self._planned:
            return
        self._planned.add(tuple(order))
        self.searched += 1
        run = permuted(self._chain, order)
        if fewest_over(run, self._budget) <= self.measure[0]:
            self.consider(order, self._solve(run))

    def resplit(self, predecessors: Sequence[Sequence[int]], fewest: int) -> None:
        """Take the result of a search that starts at the best plan, if it is better."""
        chain = self._chain
        piece = Graph(chain, predecessors).piece(range(chain.num_atoms), self._budget, lambda _, __: False)

        # Always by the smallest maximum, so that all objectives choose from the same plans.
        def refine(groups: Sequence[int]) -> list[int]:
            order = [atom for group in groups for atom in bits(group)]
            return _groups(order, dp(permuted(chain, order), self._budget))

        plans = resplit(piece, [_groups(self.order, self.boundaries)], refine, fewest, EFFORT)
        for groups in plans:
            order = [atom for group in groups for atom in bits(group)]
            self.consider(order, np.cumsum([0, *(group.bit_count() for group in groups)]).tolist())
        self.consider_order([atom for group in plans[0] for atom in bits(group)])


def _groups(order: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return the partitions of a plan as masks of atoms."""
    return [sum(1 << atom for atom in order[a:b]) for a, b in pairwise(places)]


def measure(chain: Chain, boundaries: Sequence[int], budget: int) -> Tradeoff | None:
    """Return the measure of a plan over a chain's own order; None if it exceeds the budget with more than one atom."""
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
