"""Partitions drawn at random: any order of atoms that may run, cut anywhere.

The planner looks for good partitions, so it seldom moves anything in a small graph. What it may move is what is tried
here: where the order of two atoms matters and nothing says so, a draw in two shows it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

from fx_partition.passes.ordering.search import OrderedPlan, SearchStats
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.plan import make_plan

from .program import Program, new_random

#: What was drawn for the graphs of the latest program: the order of atoms, and where it is cut.
LATEST: list[tuple[list[int], list[int]]] = []


@contextlib.contextmanager
def shuffled(program: Program) -> Iterator[None]:
    """Plan at random where a program asks for it."""
    if not program.settings.shuffled:
        yield
        return
    rng = new_random(program.seed, "order")
    LATEST.clear()

    def draw(
        chain: Chain, predecessors: Sequence[Sequence[int]], budget: int, solve: Callable[..., Any], **_: Any
    ) -> OrderedPlan:
        places = _places(chain.num_atoms, rng)
        order = _order(predecessors, rng)
        executed = [atom for a, b in pairwise(places) for atom in sorted(order[a:b])]
        LATEST.append((executed, places))
        return OrderedPlan(executed, places, SearchStats(1, False))

    with mock.patch.object(make_plan, "search_order", draw):
        yield


def _places(atoms: int, rng: random.Random) -> list[int]:
    share = rng.choice((1.0, 0.6, 0.25))
    if not atoms:
        return [0]
    return [0, *(place for place in range(1, atoms) if rng.random() < share), atoms]


def _order(predecessors: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
    """A topological order: at times rather of late atoms first, which were to run last; at times along a branch to its
    end; at times any."""
    missing = [set(found) for found in predecessors]
    ready = [atom for atom, found in enumerate(missing) if not found]
    order: list[int] = []
    prefer: Callable[[list[int]], int] = rng.choice((max, min, list.pop, rng.choice))
    while ready:
        atom = prefer([*ready]) if rng.random() < 0.8 else rng.choice(ready)
        ready.remove(atom)
        order.append(atom)
        for other, found in enumerate(missing):
            if atom in found:
                found.remove(atom)
                if not found:
                    ready.append(other)
    assert len(order) == len(predecessors)
    return order
