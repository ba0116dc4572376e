"""Which steps may not be separated.

An *atom* is a run of steps that stay in one partition. Each rule below names a *hull*, the first and the last step of a
run; hulls that overlap are one atom, and a step in no hull is an atom by itself.

- a container of tensors (``split``, ``max`` with indices) and whoever takes it apart;
- a value that is written in place, from where it is made to its last write: a copy that crosses a boundary would miss
  the write. Reads after the last write may be elsewhere, and so may all where the value is handed on (see
  `handed_on_writes`);
- a value or weight one of whose tensors has its metadata changed (``t_``), from its first touch to the last change;
- a weight or state that is written, from its first write to its last touch: it lives on one device;
- a size that is known only at run time, from its producer to the last step whose shape or check needs it;
- a region whose mode cannot be entered again (inference mode, a profiler record, `torch.func`), and a tensor that
  belongs to one with whoever takes it;
- what the caller names in ``keep_together``.

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

from ..capture.capture_model import CapturedGraph
from ..capture.fake_tensors import is_wrapped
from ..capture.graph_symbols import known_at_start, unbacked_in
from ..capture.whole_regions import is_replayed, views_without_gradient, whole_regions
from ..footprint.graph_memory import GraphMemory
from .handed_on_writes import handed_on
from .hoisting import Sorted, sort_hull

KeepTogether: TypeAlias = "Sequence[str | Sequence[str]]"

# A hull of more than this share of the steps is reported: it limits what any plan can do.
LARGE_SHARE = 0.1


@dataclass(frozen=True)
class ColocationGroup:
    """Steps ``first`` to ``last``, both included: its ``members`` must stay together, because of ``reason``."""

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
        order: the step to run at each place; trace order, but for what was moved out of large hulls.
        starts: the place where each atom begins, then the number of steps.
    """

    order: tuple[int, ...]
    starts: tuple[int, ...]

    def permuted(self, atom_order: Sequence[int]) -> Atoms:
        """The same atoms with atom ``atom_order[i]`` at place i."""
        runs = [self.order[self.starts[a] : self.starts[a + 1]] for a in atom_order]
        return Atoms(tuple(chain.from_iterable(runs)), (0, *accumulate(map(len, runs))))


def find_atoms(
    captured: CapturedGraph,
    facts: GraphMemory,
    keep_together: KeepTogether = (),
    together: Iterable[ColocationGroup] = (),
) -> Atoms:
    """Group the steps of a graph into atoms; linear in steps and touches, but for one sort of the hulls.

    Args:
        keep_together: groups of nodes; each is a module path (all steps that come from it) or a list of node names.
        together: further hulls, such as the kernels that `fused_footprint.fuse` finds.

    Raises:
        PartitionError: a group in ``keep_together`` names nothing in this graph.
    """
    hulls = _merge([*needed_hulls(captured, facts), *_asked_for(facts, keep_together), *together])
    limit = max(LARGE_SHARE * len(facts.steps), 16)
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    order: list[int] = []
    starts: list[int] = []

    def alone(steps: Iterable[int]) -> None:
        for step in steps:
            starts.append(len(order))
            order.append(step)

    for hull in hulls:
        alone(range(len(order), hull.first))
        parts = Sorted([], list(range(hull.first, hull.last + 1)), [])
        if len(parts.inside) > limit:
            parts = sort_hull(facts, nodes, hull.first, hull.last, hull.members)
        alone(parts.before)
        starts.append(len(order))
        order += parts.inside
        alone(parts.after)
        if len(parts.inside) > limit:
            _report(facts, hull, len(parts.inside))
    alone(range(len(order), len(facts.steps)))
    return Atoms(tuple(order), (*starts, len(order)))


def needed_hulls(captured: CapturedGraph, facts: GraphMemory) -> Iterable[ColocationGroup]:
    """Yield the hulls whose members give wrong results in different partitions; they may overlap."""
    yield from _written_values(captured, facts)
    yield from _written_weights(facts)
    yield from _reshaped(facts)
    yield from _containers_and_unbacked(captured, facts)
    yield from _regions(captured, facts)


def _merge(hulls: list[ColocationGroup]) -> list[ColocationGroup]:
    """Hulls that overlap as one, with the reason of the widest; in order."""
    merged: list[ColocationGroup] = []
    for hull in sorted(hulls, key=lambda h: (h.first, -h.last)):
        if merged and hull.first <= merged[-1].last:
            widest = max(merged[-1], hull, key=lambda h: h.last - h.first)
            merged[-1] = ColocationGroup.of(merged[-1].members | hull.members, widest.reason)
        else:
            merged.append(hull)
    return merged


def _report(facts: GraphMemory, hull: ColocationGroup, size: int) -> None:
    warnings.warn(
        f"{size} of {len(facts.steps)} steps ({facts.steps[hull.first].node} to "
        f"{facts.steps[hull.last].node}) cannot be separated: {hull.reason}",
        PartitionWarning,
        stacklevel=2,
    )


def _written_values(captured: CapturedGraph, facts: GraphMemory) -> Iterable[ColocationGroup]:
    crossing = handed_on(captured, facts)
    last_write: dict[int, int] = {}
    touches: dict[int, list[int]] = {}
    for i, step in enumerate(facts.steps):
        for value in step.values:
            touches.setdefault(value, []).append(i)
        for value in step.writes:
            last_write[value] = i
    for value, last in last_write.items():
        groups = crossing.get(value, [[t for t in touches[value] if t <= last]])
        for members in groups:
            yield ColocationGroup.of(members, f"{facts.values[value].name} is written in place")


def _written_weights(facts: GraphMemory) -> Iterable[ColocationGroup]:
    """From the first write on: what reads before has to run before, wherever it is."""
    members: dict[int, list[int]] = {}
    for i, step in enumerate(facts.steps):
        for weight in step.weight_writes:
            members.setdefault(weight, [])
        for weight in step.weights:
            if weight in members:
                members[weight].append(i)
    for weight, found in members.items():
        if found:
            yield ColocationGroup.of(found, f"{facts.weight_names[weight]} is written")


def _reshaped(facts: GraphMemory) -> Iterable[ColocationGroup]:
    """Until the last change of metadata: a tensor that crosses a boundary before would be another object behind it."""
    last: dict[tuple[str, int], int] = {}
    touches: dict[tuple[str, int], list[int]] = {}
    for i, step in enumerate(facts.steps):
        for place in (*(("v", v) for v in step.values), *(("w", w) for w in step.weights)):
            touches.setdefault(place, []).append(i)
        last |= {("v", v): i for v in step.reshapes} | {("w", w): i for w in step.weight_reshapes}
    for (kind, number), until in last.items():
        name = facts.values[number].name if kind == "v" else facts.weight_names[number]
        members = [t for t in touches[kind, number] if t <= until]
        yield ColocationGroup.of(members, f"the metadata of a tensor of {name} is changed in place")


def _containers_and_unbacked(captured: CapturedGraph, facts: GraphMemory) -> Iterable[ColocationGroup]:
    index = {step.node: i for i, step in enumerate(facts.steps)}
    unbacked: dict[Any, list[int]] = {}
    known = known_at_start(captured)
    for node in captured.gm.graph.nodes:
        if node.name not in index:
            continue
        here = index[node.name]
        value = captured.values.get(node)
        users = [index[user.name] for user in node.users if user.name in index]
        if users and _cannot_cross(value) and not is_replayed(node):
            yield ColocationGroup.of([here, *users], f"{node.name} is no tensor and cannot cross a boundary")
        symbols = set()
        for operand in (value, *(captured.values.get(source) for source in node.all_input_nodes)):
            symbols |= unbacked_in(operand)
        for symbol in symbols - known:
            unbacked.setdefault(symbol, []).append(here)
    for symbol, members in unbacked.items():
        yield ColocationGroup.of(members, f"the size {symbol} is known only at run time")


def _cannot_cross(value: Any) -> bool:
    """Tensors, numbers and sizes cross a boundary; containers, opaque handles and tensors of `torch.func` do not."""
    if isinstance(value, torch.Tensor):
        return is_wrapped(value)
    crossing = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, torch.Size)
    return not isinstance(value, crossing)


def _regions(captured: CapturedGraph, facts: GraphMemory) -> Iterable[ColocationGroup]:
    """From an enter node to its exit, for the modes that `autocast_regions` does not replay."""
    index = {step.node: i for i, step in enumerate(facts.steps)}
    for first, last in whole_regions(captured.gm.graph.nodes):
        yield ColocationGroup.of(range(index[first.name], index[last.name] + 1), f"{first.name} opens a region")
    for node in views_without_gradient(captured):
        members = [index[n.name] for n in (node, *node.users) if n.name in index]
        yield ColocationGroup.of(members or [0], f"{node.name} is a view made where gradients are switched off")


def _asked_for(facts: GraphMemory, groups: KeepTogether) -> Iterable[ColocationGroup]:
    for group in groups:
        if isinstance(group, str):
            path = group
            found = [i for i, s in enumerate(facts.steps) if s.path == path or s.path.startswith(f"{path}.")]
        else:
            names = set(group)
            found = [i for i, s in enumerate(facts.steps) if s.node in names]
            missing = names - {facts.steps[i].node for i in found}
            if missing:
                raise PartitionError(f"keep_together names {', '.join(sorted(missing))}: no such node in the graph")
        if not found:
            raise PartitionError(f"keep_together names {group!r}: no step of the graph comes from that module")
        more = "" if isinstance(group, str) or len(group) < 4 else f" and {len(group) - 3} more"
        named = group if isinstance(group, str) else ", ".join(group[:3])
        yield ColocationGroup.of(found, f"keep_together names {named}{more}")
