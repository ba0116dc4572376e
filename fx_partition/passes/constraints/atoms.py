"""Group the steps that may not be separated into atoms.

An *atom* is a run of steps that stay in one partition. Each rule below makes a *colocation group*, from the first to
the last of its members; groups that overlap are one atom, and a step in no group is an atom by itself.

- a container of tensors (``split``, ``max`` with indices) and the steps that take it apart;
- a value that is written in place, from where it is made to its last write: a copy that crosses a boundary would miss
  the write. Steps that read it after the last write may be in other partitions. Where the value is handed on, all
  steps may be (see `handed_on_writes`);
- a value or weight one of whose tensors has its metadata changed (``t_``), from its first touch to the last change;
- a weight or state that is written, from its first write to its last touch: it lives on one device;
- a size that is known only at run time, from its producer to the last step whose shape or check needs it;
- a region whose mode cannot be entered again (inference mode, a profiler record, `torch.func`), and a tensor that
  belongs to such a region with the steps that use it;
- the nodes that the caller names in ``keep_together``.

Before: ``linear, relu_ (writes linear), size, split, getitem, getitem_1, add``
After:  ``[linear, relu_] [size] [split, getitem, getitem_1] [add]``
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, TypeAlias

import torch
import torch.fx

from fx_partition.common.errors import PartitionError, PartitionWarning

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import is_wrapped
from ..capture.graph_symbols import known_at_start, unbacked_in
from ..capture.whole_regions import is_replayed, views_without_gradient, whole_regions
from ..footprint.graph_memory import GraphMemory
from .handed_on_writes import handed_on
from .hoisting import Hoisted, hoist

KeepTogether: TypeAlias = "Sequence[str | Sequence[str]]"

# A group of more than this share of the steps gets a warning, because it limits every plan.
LARGE_SHARE = 0.1


@dataclass(frozen=True)
class ColocationGroup:
    """Steps ``first`` to ``last``, both included, whose ``members`` must stay together because of ``reason``."""

    first: int
    last: int
    reason: str
    members: frozenset[int]

    @classmethod
    def of(cls, members: Iterable[int], reason: str) -> ColocationGroup:
        found = frozenset(members)
        return cls(min(found), max(found), reason, found)


@dataclass(frozen=True)
class Atoms:
    """The atoms of a graph.

    Attributes:
        order: the step to run at each position; trace order, but for steps that were moved out of large groups.
        starts: the position where each atom begins, then the number of steps.
    """

    order: tuple[int, ...]
    starts: tuple[int, ...]

    def permuted(self, atom_order: Sequence[int]) -> Atoms:
        """Return the same atoms with atom ``atom_order[i]`` at position i."""
        runs = [self.order[self.starts[a] : self.starts[a + 1]] for a in atom_order]
        return Atoms(tuple(chain.from_iterable(runs)), (0, *accumulate(map(len, runs))))


def find_atoms(
    captured: CapturedGraph,
    memory: GraphMemory,
    keep_together: KeepTogether = (),
    together: Iterable[ColocationGroup] = (),
) -> Atoms:
    """Group the steps of a graph into atoms; linear in steps and touches, but for one sort of the groups.

    Args:
        keep_together: groups of nodes; each is a module path (all steps of that module) or a list of node names.
        together: further groups, such as the kernels that `fused_footprint.fuse` finds.

    Raises:
        PartitionError: a group in ``keep_together`` names nothing in this graph.
    """
    groups = _merge([*needed_groups(captured, memory), *_asked_for(memory, keep_together), *together])
    limit = max(LARGE_SHARE * len(memory.steps), 16)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    order: list[int] = []
    starts: list[int] = []

    def alone(steps: Iterable[int]) -> None:
        for step in steps:
            starts.append(len(order))
            order.append(step)

    for group in groups:
        alone(range(len(order), group.first))
        hoisted = Hoisted([], list(range(group.first, group.last + 1)), [])
        # Small groups stay as traced: moving steps out of them would change the order for little gain.
        if len(hoisted.inside) > limit:
            hoisted = hoist(memory, nodes, group.first, group.last, group.members)
        alone(hoisted.before)
        starts.append(len(order))
        order += hoisted.inside
        alone(hoisted.after)
        if len(hoisted.inside) > limit:
            _warn_of_size(memory, group, len(hoisted.inside))
    alone(range(len(order), len(memory.steps)))
    return Atoms(tuple(order), (*starts, len(order)))


def needed_groups(captured: CapturedGraph, memory: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield the groups whose members would give wrong results in different partitions; they may overlap."""
    yield from _written_values(captured, memory)
    yield from _written_weights(memory)
    yield from _reshaped(memory)
    yield from _containers_and_unbacked(captured, memory)
    yield from _regions(captured, memory)


def _merge(groups: list[ColocationGroup]) -> list[ColocationGroup]:
    """Return the groups in order, those that overlap merged into one with the reason of the widest."""
    merged: list[ColocationGroup] = []
    for group in sorted(groups, key=lambda g: (g.first, -g.last)):
        if merged and group.first <= merged[-1].last:
            widest = max(merged[-1], group, key=lambda g: g.last - g.first)
            merged[-1] = ColocationGroup.of(merged[-1].members | group.members, widest.reason)
        else:
            merged.append(group)
    return merged


def _warn_of_size(memory: GraphMemory, group: ColocationGroup, size: int) -> None:
    warnings.warn(
        f"{size} of {len(memory.steps)} steps ({memory.steps[group.first].node} to "
        f"{memory.steps[group.last].node}) cannot be separated: {group.reason}",
        PartitionWarning,
        stacklevel=2,
    )


def _written_values(captured: CapturedGraph, memory: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield a group from the producer to the last write of each value that is written in place."""
    crossing = handed_on(captured, memory)
    last_write: dict[int, int] = {}
    touches: dict[int, list[int]] = {}
    for i, step in enumerate(memory.steps):
        for value in step.values:
            touches.setdefault(value, []).append(i)
        for value in step.writes:
            last_write[value] = i
    for value, last in last_write.items():
        groups = crossing.get(value, [[t for t in touches[value] if t <= last]])
        for members in groups:
            yield ColocationGroup.of(members, f"{memory.values[value].name} is written in place")


def _written_weights(memory: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield a group for each weight from its first write on.

    A step that reads the weight before the first write may be in an earlier partition, which runs before the write.
    """
    members: dict[int, list[int]] = {}
    for i, step in enumerate(memory.steps):
        for weight in step.weight_writes:
            members.setdefault(weight, [])
        for weight in step.weights:
            if weight in members:
                members[weight].append(i)
    for weight, found in members.items():
        if found:
            yield ColocationGroup.of(found, f"{memory.weight_names[weight]} is written")


def _reshaped(memory: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield a group for each storage from its first touch to the last change of metadata of one of its tensors.

    A tensor that crossed a boundary before the change would be another object behind it, and keep its old metadata.
    """
    last: dict[tuple[str, int], int] = {}
    touches: dict[tuple[str, int], list[int]] = {}
    for i, step in enumerate(memory.steps):
        for place in (*(("v", v) for v in step.values), *(("w", w) for w in step.weights)):
            touches.setdefault(place, []).append(i)
        last |= {("v", v): i for v in step.reshapes} | {("w", w): i for w in step.weight_reshapes}
    for (kind, number), until in last.items():
        name = memory.values[number].name if kind == "v" else memory.weight_names[number]
        members = [t for t in touches[kind, number] if t <= until]
        yield ColocationGroup.of(members, f"the metadata of a tensor of {name} is changed in place")


def _containers_and_unbacked(captured: CapturedGraph, memory: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield a group for each result that cannot cross a boundary, and one for each size known only at run time."""
    index = {step.node: i for i, step in enumerate(memory.steps)}
    unbacked: dict[Any, list[int]] = {}
    known = known_at_start(captured)
    late = {node: found for node, value in captured.values.items() if (found := unbacked_in(value) - known)}
    for node in captured.gm.graph.nodes:
        if node.name not in index:
            continue
        here = index[node.name]
        value = captured.values.get(node)
        users = [index[user.name] for user in node.users if user.name in index]
        if users and _cannot_cross(value) and not is_replayed(node):
            yield ColocationGroup.of([here, *users], f"{node.name} is not a tensor and cannot cross a boundary")
        nodes = (node, *node.all_input_nodes) if late else ()
        for symbol in set().union(*(late.get(n, ()) for n in nodes)):
            unbacked.setdefault(symbol, []).append(here)
    for symbol, members in unbacked.items():
        yield ColocationGroup.of(members, f"the size {symbol} is known only at run time")


def _cannot_cross(value: Any) -> bool:
    """Return whether a value must stay in its partition: a container, an opaque handle or a tensor of `torch.func`.

    Tensors, numbers and sizes cross a boundary.
    """
    if isinstance(value, torch.Tensor):
        return is_wrapped(value)
    crossing = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, torch.Size)
    return not isinstance(value, crossing)


def _regions(captured: CapturedGraph, memory: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield a group from the enter node to the exit of each mode that `autocast_regions` does not replay."""
    index = {step.node: i for i, step in enumerate(memory.steps)}
    for first, last in whole_regions(captured.gm.graph.nodes):
        yield ColocationGroup.of(range(index[first.name], index[last.name] + 1), f"{first.name} opens a region")
    for node in views_without_gradient(captured):
        members = [index[n.name] for n in (node, *node.users) if n.name in index]
        yield ColocationGroup.of(members or [0], f"{node.name} is a view made where gradients are switched off")


def _asked_for(memory: GraphMemory, groups: KeepTogether) -> Iterable[ColocationGroup]:
    """Yield the groups of ``keep_together``; raise an error for one that the graph does not have."""
    for group in groups:
        if isinstance(group, str):
            path = group
            found = [i for i, s in enumerate(memory.steps) if s.path == path or s.path.startswith(f"{path}.")]
        else:
            names = set(group)
            found = [i for i, s in enumerate(memory.steps) if s.node in names]
            missing = names - {memory.steps[i].node for i in found}
            if missing:
                raise PartitionError(f"keep_together names {', '.join(sorted(missing))}: no such node in the graph")
        if not found:
            raise PartitionError(f"keep_together names {group!r}: no step of the graph comes from that module")
        more = "" if isinstance(group, str) or len(group) < 4 else f" and {len(group) - 3} more"
        named = group if isinstance(group, str) else ", ".join(group[:3])
        yield ColocationGroup.of(found, f"keep_together names {named}{more}")
