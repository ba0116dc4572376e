"""Moving steps out of a hull that they only happen to lie in.

A hull is a run of steps, so it holds what lies between its members too. Of these, a step that needs no member moves
before the hull, and one that no member needs moves behind it; what is needed both ways stays.

Before: ``add (member), neg, neg_1, mul_ (member, writes add), sub (reads neg_1 and add)``
After:  ``neg, neg_1 | add, mul_ | sub``

An order is kept wherever two steps could notice: data, a storage that one of them writes, random numbers, effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx

from .facts import Facts

_RANDOM = ("dropout", "rand", "bernoulli", "multinomial", "normal", "exponential", "uniform", "poisson", "geometric")


@dataclass(frozen=True)
class Sorted:
    """The steps of a hull: those to run before it, those that stay in it, those to run behind it, each in order."""

    before: list[int]
    inside: list[int]
    after: list[int]


def sort_hull(
    facts: Facts, nodes: Mapping[str, torch.fx.Node], first: int, last: int, members: frozenset[int]
) -> Sorted:
    """Say where each step of ``first .. last`` may go; linear in steps and touches.

    Args:
        nodes: the graph's nodes by name.
        members: the steps that must stay together.
    """
    span = range(first, last + 1)
    if any(_is_region(nodes[facts.steps[t].node]) for t in span):
        return Sorted([], list(span), [])  # a mode is in force for whatever lies in it
    needs = _predecessors(facts, nodes, span)
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


def _predecessors(facts: Facts, nodes: Mapping[str, torch.fx.Node], span: Sequence[int]) -> dict[int, list[int]]:
    """For each step of a span, the steps of the span that must run before it."""
    index = {facts.steps[t].node: t for t in span}
    last_write: dict[tuple[str, int], int] = {}
    touches: dict[tuple[str, int], list[int]] = {}
    last_effect = -1
    needs: dict[int, list[int]] = {}
    for t in span:
        step = facts.steps[t]
        node = nodes[step.node]
        found = {index[source.name] for source in node.all_input_nodes if source.name in index}
        written = {("v", v) for v in step.writes} | {("w", w) for w in step.weight_writes}
        for place in [*(("v", v) for v in step.values), *(("w", w) for w in step.weights)]:
            if place in last_write:
                found.add(last_write[place])
            if place in written:
                found.update(touches.get(place, ()))
                last_write[place] = t
                touches[place] = []
            else:
                touches.setdefault(place, []).append(t)
        if _has_effect(node):
            if last_effect >= 0:
                found.add(last_effect)
            last_effect = t
        needs[t] = sorted(found)
    return needs


def _is_region(node: torch.fx.Node) -> bool:
    name = getattr(node.target, "__name__", "")
    return "enter" in name or "exit" in name or name == "_set_grad_enabled"


def _has_effect(node: torch.fx.Node) -> bool:
    """Random numbers, checks and calls whose insides are unknown keep their order among themselves."""
    if node.op == "call_module" or isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.is_impure() or any(word in name for word in _RANDOM)
