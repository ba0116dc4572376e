"""Which steps may not be separated.

An *atom* is a run of steps that stay in one partition. Each rule below names a *hull*, the first and the last step of a
run; hulls that overlap are one atom, and a step in no hull is an atom by itself.

- a container of tensors (``split``, ``max`` with indices) and whoever takes it apart;
- a value that is written in place, from where it is made to its last write: a copy that crosses a boundary would miss
  the write. Reads after the last write may be elsewhere;
- a weight or state that is written, from its first touch to its last: it lives on one device;
- a size that is known only at run time, from its producer to the last step whose shape or check needs it;
- a region whose mode cannot be entered again (inference mode, a profiler record);
- what the caller names in ``keep_together``.

Before: ``linear, relu_ (writes linear), size, split, getitem, getitem_1, add``
After:  ``[linear, relu_] [size] [split, getitem, getitem_1] [add]``
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from .capture import Captured
from .errors import PartitionError, PartitionWarning
from .facts import Facts

KeepTogether: TypeAlias = "Sequence[str | Sequence[str]]"

# A hull of more than this share of the steps is reported: it limits what any plan can do.
LARGE_SHARE = 0.1


@dataclass(frozen=True)
class Hull:
    """Steps ``first`` to ``last``, both included, that stay together because of ``reason``."""

    first: int
    last: int
    reason: str


@dataclass(frozen=True)
class Atoms:
    """The first step of each atom, then the number of steps; and the hull that makes each large atom large."""

    starts: tuple[int, ...]
    large: tuple[Hull, ...] = ()


def find_atoms(captured: Captured, facts: Facts, keep_together: KeepTogether = ()) -> Atoms:
    """Group the steps of a graph into atoms; linear in steps and touches, but for one sort of the hulls.

    Args:
        keep_together: groups of nodes; each is a module path (all steps that come from it) or a list of node names.

    Raises:
        PartitionError: a group in ``keep_together`` names nothing in this graph.
    """
    hulls = [
        *_written_values(facts),
        *_written_weights(facts),
        *_containers_and_unbacked(captured, facts),
        *_regions(captured, facts),
        *_asked_for(facts, keep_together),
    ]
    starts = list(range(len(facts.steps)))
    merged: list[Hull] = []
    for hull in sorted(hulls, key=lambda h: (h.first, -h.last)):
        if merged and hull.first <= merged[-1].last:
            widest = max(merged[-1], hull, key=lambda h: h.last - h.first)
            merged[-1] = Hull(merged[-1].first, max(merged[-1].last, hull.last), widest.reason)
        else:
            merged.append(hull)
    inside = {step for hull in merged for step in range(hull.first + 1, hull.last + 1)}
    starts = [step for step in starts if step not in inside]
    limit = max(LARGE_SHARE * len(facts.steps), 16)
    large = tuple(hull for hull in merged if hull.last - hull.first + 1 > limit)
    for hull in large:
        warnings.warn(
            f"{hull.last - hull.first + 1} of {len(facts.steps)} steps ({facts.steps[hull.first].node} to "
            f"{facts.steps[hull.last].node}) cannot be separated: {hull.reason}",
            PartitionWarning,
            stacklevel=2,
        )
    return Atoms((*starts, len(facts.steps)), large)


def _written_values(facts: Facts) -> Iterable[Hull]:
    last_write: dict[int, int] = {}
    for i, step in enumerate(facts.steps):
        for value in step.writes:
            last_write[value] = i
    for value, last in last_write.items():
        yield Hull(max(facts.values[value].made_at, 0), last, f"{facts.values[value].name} is written in place")


def _written_weights(facts: Facts) -> Iterable[Hull]:
    written = {weight for step in facts.steps for weight in step.weight_writes}
    spans: dict[int, tuple[int, int]] = {}
    for i, step in enumerate(facts.steps):
        for weight in step.weights:
            if weight in written:
                spans[weight] = (spans.get(weight, (i, i))[0], i)
    for weight, (first, last) in spans.items():
        yield Hull(first, last, f"{facts.weight_names[weight]} is written")


def _containers_and_unbacked(captured: Captured, facts: Facts) -> Iterable[Hull]:
    index = {step.node: i for i, step in enumerate(facts.steps)}
    unbacked: dict[Any, tuple[int, int]] = {}
    for node in captured.gm.graph.nodes:
        if node.name not in index:
            continue
        here = index[node.name]
        value = captured.values.get(node)
        users = [index[user.name] for user in node.users if user.name in index]
        if users and _cannot_cross(value) and not _replayable(node):
            yield Hull(here, max(users), f"{node.name} is no tensor and cannot cross a boundary")
        symbols = set()
        for operand in (value, *(captured.values.get(source) for source in node.all_input_nodes)):
            symbols |= _unbacked_symbols(operand)
        for symbol in symbols:
            unbacked[symbol] = (unbacked.get(symbol, (here, here))[0], here)
    for symbol, (first, last) in unbacked.items():
        yield Hull(first, last, f"the size {symbol} is known only at run time")


def _cannot_cross(value: Any) -> bool:
    """Tensors, numbers and sizes cross a boundary; containers of tensors and opaque handles do not."""
    crossing = (torch.Tensor, int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, torch.Size)
    return not isinstance(value, crossing)


def _replayable(node: torch.fx.Node) -> bool:
    """Autocast and grad-mode regions are entered again by every partition that lies in them (see `regions`)."""
    return getattr(node.target, "__name__", "") in ("_enter_autocast", "_set_grad_enabled")


def _unbacked_symbols(value: Any) -> set[Any]:
    if value is None:
        return set()
    found: set[Any] = set()
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            if any(isinstance(size, torch.SymInt) for size in leaf.shape):
                found |= free_unbacked_symbols(leaf)
        elif isinstance(leaf, (torch.SymInt, torch.SymBool, torch.SymFloat)):
            found |= free_unbacked_symbols(leaf)
    return found


def _regions(captured: Captured, facts: Facts) -> Iterable[Hull]:
    """From an enter node to its exit, for the modes that `regions` does not replay."""
    index = {step.node: i for i, step in enumerate(facts.steps)}
    for node in captured.gm.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if "enter" in name and not _replayable(node) and node.name in index:
            exits = [index[user.name] for user in node.users if user.name in index]
            if exits:
                yield Hull(index[node.name], max(exits), f"{node.name} opens a region")


def _asked_for(facts: Facts, groups: KeepTogether) -> Iterable[Hull]:
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
        yield Hull(found[0], found[-1], f"keep_together={group!r}")
