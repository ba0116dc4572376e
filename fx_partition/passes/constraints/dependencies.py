"""Find which step, and which atom, must run before which.

Terms
-----
predecessor
    A step p that must run before a step t: t reads a result of p; one of them writes a storage that the other touches;
    or both draw random numbers or have visible effects.
barrier
    A step that enters or leaves a mode (autocast, grad mode). No step moves across it: the mode applies to every step
    that runs while it is on, and `autocast_regions` replays it by position.

Before (steps)::

    linear = F.linear(x, w);  draw = torch.rand_like(x);  relu_ = linear.relu_();  drop = F.dropout(draw);  neg = -relu_

After (predecessors)::

    linear: -;  draw: -;  relu_: linear;  drop: draw;  neg: relu_

Only direct predecessors are listed, and the others follow through them, so the lists are linear in steps, touches and
edges. A barrier needs every step since the barrier before it, and every step needs the last barrier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
import torch.fx

from ..capture.operators import HigherOrderOperator, OpOverload
from ..capture.whole_regions import is_region
from ..footprint.graph_memory import GraphMemory

_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "exponential", "uniform", "poisson", "geometric", "rrelu")
# Dropout is one of many arguments of these, so they count as random without a look at it.
_MAY_DROP = ("multi_head_attention", "lstm", "gru", "rnn")


def step_predecessors(
    memory: GraphMemory, nodes: Mapping[str, torch.fx.Node], span: Sequence[int]
) -> dict[int, list[int]]:
    """Return, for each step of a span, the steps of the span that must run before it, without barriers.

    Args:
        nodes: the graph's nodes by name.
        span: steps, ascending.
    """
    index = {memory.steps[t].node: t for t in span}
    last_write: dict[tuple[str, int], int] = {}
    touches: dict[tuple[str, int], list[int]] = {}
    last_effect = -1
    needs: dict[int, list[int]] = {}
    for t in span:
        step = memory.steps[t]
        node = nodes[step.node]
        found = {index[source.name] for source in node.all_input_nodes if source.name in index}
        written = {("v", v) for v in step.writes} | {("w", w) for w in step.weight_writes}
        for place in [*(("v", v) for v in step.values), *(("w", w) for w in step.weights)]:
            if place in last_write:
                found.add(last_write[place])
            if place in written:
                # A write waits for all touches since the last write; who comes later then waits for this write alone.
                found.update(touches.get(place, ()))
                last_write[place] = t
                touches[place] = []
            else:
                touches.setdefault(place, []).append(t)
        if step.draws or has_effect(node):
            if last_effect >= 0:
                found.add(last_effect)
            last_effect = t
        needs[t] = sorted(found)
    return needs


def atom_predecessors(
    memory: GraphMemory, nodes: Mapping[str, torch.fx.Node], starts: Sequence[int]
) -> list[list[int]]:
    """Return, for each atom, the atoms that must run before it, ascending; linear in steps, touches and edges.

    Args:
        memory: the graph's, in the order in which atoms are runs of steps (``memory.reordered(atoms.order)``).
        nodes: the graph's nodes by name.
        starts: the position where each atom begins, then the number of steps (``atoms.starts``).

    Example: ``a = x + 1; b = x * 2; c = a + b`` gives ``[[], [], [0, 1]]``.
    """
    atom_of = [atom for atom in range(len(starts) - 1) for _ in range(starts[atom], starts[atom + 1])]
    needs: list[set[int]] = [set() for _ in range(len(starts) - 1)]
    for t, found in all_predecessors(memory, nodes):
        needs[atom_of[t]].update(atom_of[p] for p in found)
    return [sorted(found - {atom}) for atom, found in enumerate(needs)]


def all_predecessors(memory: GraphMemory, nodes: Mapping[str, torch.fx.Node]) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield (step, the steps that must run before it) for every step in order, barriers included.

    Args:
        memory: the graph's, in an order in which it may run.
        nodes: the graph's nodes by name.
    """
    barrier = -1
    for t, found in step_predecessors(memory, nodes, range(len(memory.steps))).items():
        if is_region(nodes[memory.steps[t].node]):
            yield t, [*found, *range(max(barrier, 0), t)]
            barrier = t
        else:
            yield t, [*found, barrier] if barrier >= 0 else found


def has_effect(node: torch.fx.Node) -> bool:
    """Return whether a node draws random numbers, checks something or makes a call with unknown contents.

    Such nodes keep their order among themselves. Where an operator runs on fake tensors, ``NodeMemory.draws`` says
    whether it draws random numbers; the names here are for the others.
    """
    if node.op == "call_module" or isinstance(node.target, HigherOrderOperator):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if "dropout" in name or name == "scaled_dot_product_attention":
        return _drops(node, name)
    if isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        return True
    return node.is_impure() or _sounds_random(name)


@lru_cache(maxsize=4096)
def _sounds_random(name: str) -> bool:
    """Return whether a function draws random numbers by its name; cached, as graphs call few functions."""
    return any(word in name for word in (*_RANDOM, *_MAY_DROP))


def _drops(node: torch.fx.Node, name: str) -> bool:
    """Return whether a dropout or an attention draws random numbers; in eval mode the graph's constants rule it out."""
    if name == "scaled_dot_product_attention":
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0) != 0.0)
    training = node.args[2] if len(node.args) > 2 else True
    return node.kwargs.get("training", node.kwargs.get("train", training)) is not False
