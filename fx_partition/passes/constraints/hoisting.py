"""Move steps that are not members of a colocation group out of its span.

A group becomes a run of steps, so it also holds the steps between its members. Of these, a step that depends on no
member moves before the group, and a step that no member depends on moves behind it. A step with dependencies both
ways stays.

Before: ``add (member), neg, neg_1, mul_ (member, writes add), sub (reads neg_1 and add)``
After:  ``neg, neg_1 | add, mul_ | sub``

Two steps keep their order wherever it can change a result (see `dependencies`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.fx

from ..capture.whole_regions import is_region
from ..footprint.graph_memory import GraphMemory
from .dependencies import step_predecessors


@dataclass(frozen=True)
class Hoisted:
    """The steps of a span: those to run before the group, those that stay in it, those to run behind it, in order."""

    before: list[int]
    inside: list[int]
    after: list[int]


def hoist(
    memory: GraphMemory, nodes: Mapping[str, torch.fx.Node], first: int, last: int, members: frozenset[int]
) -> Hoisted:
    """Decide where each step of ``first .. last`` goes; linear in steps and touches.

    Args:
        nodes: the graph's nodes by name.
        members: the steps that must stay together.
    """
    span = range(first, last + 1)
    if any(is_region(nodes[memory.steps[t].node]) for t in span):
        return Hoisted([], list(span), [])  # a step must not leave the mode that it was traced in
    needs = step_predecessors(memory, nodes, span)
    depends: set[int] = set()
    for t in span:
        if t not in members and any(p in members or p in depends for p in needs[t]):
            depends.add(t)
    wanted: set[int] = set()
    for t in reversed(span):
        if t in members or t in wanted:
            wanted.update(p for p in needs[t] if p not in members)
    inside = [t for t in span if t in members or (t in depends and t in wanted)]
    return Hoisted(
        before=[t for t in span if t not in members and t not in depends],
        inside=inside,
        after=[t for t in span if t in depends and t not in wanted],
    )
