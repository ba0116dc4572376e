"""Which runs must be in one partition, found from what each run touches.

- a container of tensors, or another value that cannot cross a boundary, and the runs that take it apart;
- an activation that is written in place, from where it is made to its last write, unless it is handed on (`versions`);
- a memory one of whose tensors has its metadata changed, from its first touch to the last change;
- a weight or a state that is written, from its first write to its last touch;
- a size that only a run can tell, from its producer to its last use;
- a region that cannot be entered again; a view that is made where gradients are off, with the runs that read it;
- what the caller asked to keep together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..capture.fake_tensors import is_wrapped
from ..capture.graph_symbols import unbacked_in
from ..capture.whole_regions import is_replayed, views_without_gradient, whole_regions
from .runs import Reading
from .versions import handed_on

_CROSSING = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, torch.Size)


class Group(NamedTuple):
    """Places of runs in the trace that must be in one partition, and why."""

    members: Sequence[int]
    reason: str


def find_groups(reading: Reading) -> Iterator[Group]:
    """Yield the groups of a graph; linear in runs and touches, but for activations that are handed on."""
    place = {run.node: t for t, run in enumerate(reading.runs)}
    yield from _written(reading, place)
    yield from _containers(reading, place)
    yield from _sizes(reading)
    graph = reading.captured.gm.graph
    for first, last in whole_regions(graph.nodes):
        yield Group(range(place[first], place[last] + 1), f"{first.name} opens a region")
    for node in views_without_gradient(reading.captured):
        members = [place[n] for n in (node, *node.users) if n in place] or [0]
        yield Group(members, f"{node.name} is a view made where gradients are switched off")


def asked_for(reading: Reading, wanted: Iterable[str | Sequence[str]]) -> Iterator[Group | str]:
    """Yield the group that each entry of ``keep_together`` names; text says why one names nothing."""
    by_name = {run.node.name: t for t, run in enumerate(reading.runs)}
    for entry in wanted:
        if isinstance(entry, str):
            found = [t for t, run in enumerate(reading.runs) if f"{run.path}.".startswith(f"{entry}.")]
            if not found:
                yield f"no node comes from the module {entry!r}"
        else:
            missing = [name for name in entry if name not in by_name]
            found = [by_name[name] for name in entry if name in by_name]
            if missing or not found:
                yield f"{', '.join(missing) or 'an empty list'} is no node that runs"
        if found:
            yield Group(sorted(found), f"keep_together names {entry if isinstance(entry, str) else ', '.join(entry)}")


def _written(reading: Reading, place: dict[torch.fx.Node, int]) -> Iterator[Group]:
    touches: dict[int, list[int]] = {}
    first_write: dict[int, int] = {}
    last_write: dict[int, int] = {}
    last_change: dict[int, int] = {}
    for t, run in enumerate(reading.runs):
        for memory in run.touches:
            touches.setdefault(memory, []).append(t)
        for memory in run.writes:
            first_write.setdefault(memory, t)
            last_write[memory] = t
        for memory in run.reshapes:
            last_change[memory] = t
    for memory, last in last_write.items():
        name = reading.memories[memory].name
        if not reading.memories[memory].is_activation:
            members = [t for t in touches.get(memory, ()) if t >= first_write[memory]]
            if members:
                yield Group(members, f"{name} is written")
            continue
        found = None if memory in last_change else handed_on(reading, place, memory, touches[memory])
        for group in [[t for t in touches[memory] if t <= last]] if found is None else found:
            yield Group(group, f"{name} is written in place")
    for memory, last in last_change.items():
        name = reading.memories[memory].name
        members = [t for t in touches[memory] if t <= last]
        yield Group(members, f"the metadata of a tensor of {name} is changed in place")


def _containers(reading: Reading, place: dict[torch.fx.Node, int]) -> Iterator[Group]:
    for t, run in enumerate(reading.runs):
        value = reading.captured.values.get(run.node)
        crosses = not is_wrapped(value) if isinstance(value, torch.Tensor) else isinstance(value, _CROSSING)
        if crosses or is_replayed(run.node):
            continue
        users = [place[user] for user in run.node.users if user in place]
        if users:
            yield Group([t, *sorted(users)], f"{run.node.name} is no tensor and cannot cross a boundary")


def _sizes(reading: Reading) -> Iterator[Group]:
    values = reading.captured.values.items()
    late = {node: found for node, value in values if (found := unbacked_in(value) - reading.known)}
    users: dict[Any, list[int]] = {}
    for t, run in enumerate(reading.runs if late else ()):
        nodes = (run.node, *run.node.all_input_nodes)
        for symbol in set().union(*(late.get(node, ()) for node in nodes)):
            users.setdefault(symbol, []).append(t)
    for symbol, members in users.items():
        yield Group(members, f"the size {symbol} is known only at run time")
