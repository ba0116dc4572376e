"""Moving steps out of a hull that they only happen to lie in.

A hull is a run of steps, so it holds what lies between its members too. Of these, a step that needs no member moves
before the hull, and one that no member needs moves behind it; what is needed both ways stays.

Before: ``add (member), neg, neg_1, mul_ (member, writes add), sub (reads neg_1 and add)``
After:  ``neg, neg_1 | add, mul_ | sub``

An order is kept wherever two steps could notice it (see `dependencies`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.fx

from ..capture.whole_regions import is_region
from ..footprint.graph_memory import GraphMemory
from .dependencies import step_predecessors


@dataclass(frozen=True)
class Sorted:
    """The steps of a hull: those to run before it, those that stay in it, those to run behind it, each in order."""

    before: list[int]
    inside: list[int]
    after: list[int]


def sort_hull(
    facts: GraphMemory, nodes: Mapping[str, torch.fx.Node], first: int, last: int, members: frozenset[int]
) -> Sorted:
    """Say where each step of ``first .. last`` may go; linear in steps and touches.

    Args:
        nodes: the graph's nodes by name.
        members: the steps that must stay together.
    """
    span = range(first, last + 1)
    if any(is_region(nodes[facts.steps[t].node]) for t in span):
        return Sorted([], list(span), [])  # a mode is in force for whatever lies in it
    needs = step_predecessors(facts, nodes, span)
    depends: set[int] = set()
    for t in span:
        if t not in members and any(p in members or p in depends for p in needs[t]):
            depends.add(t)
    wanted: set[int] = set()
    for t in reversed(span):
        if t in members or t in wanted:
            wanted.update(p for p in needs[t] if p not in members)
    inside = [t for t in span if t in members or (t in depends and t in wanted)]
    return Sorted(
        before=[t for t in span if t not in members and t not in depends],
        inside=inside,
        after=[t for t in span if t in depends and t not in wanted],
    )
