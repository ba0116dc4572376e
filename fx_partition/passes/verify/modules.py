"""Which runs a plan's ``boundaries`` keep together, and what they touch where its ``memory`` is a device's.

A run belongs to the outermost module around it that stays whole; without one, to the module that it was traced in. A
run of a module beneath which other runs belong, and that does not stay whole, is part of what the trace has before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..capture.user_names import ModuleCall, module_calls
from .groups import Group
from .runs import Reading


def kept_whole(reading: Reading, boundaries: str | Sequence[str]) -> Iterator[Group | str]:
    """Yield each stretch of the trace that ``boundaries`` keeps together; text says why an entry names nothing."""
    if boundaries == "nodes":
        return
    around = [module_calls(run.node) for run in reading.runs]
    entries = None if boundaries == "modules" else list(boundaries)
    for entry in entries or ():
        if not any(_is_named(module, [entry]) for modules in around for module in modules):
            yield f"no node comes from a module of the class or path {entry!r}"
    if not any(map(module_calls, reading.captured.gm.graph.nodes)):
        yield "no node says which module it comes from"
    owners: list[str] = []
    whole: set[str] = set()
    for modules in around:
        kept = [m.path for m in modules if (_is_numbered(m) if entries is None else _is_named(m, entries))]
        whole.update(kept[:1])
        owners.append(kept[0] if kept else modules[-1].path if modules else "")
    outer = {owner[:dot] for owner in {*owners} for dot, letter in enumerate(owner) if letter == "."}
    joining = {owner for owner in owners if not owner or owner in outer} - whole
    first, current = 0, None
    for t, owner in enumerate(owners):
        if owner in joining or owner == current:
            continue
        if current is not None:
            yield Group(range(first, t), f"boundaries keep {current or 'the model'} whole")
            first = t
        current = owner
    if owners:
        yield Group(range(first, len(owners)), f"boundaries keep {current or 'the model'} whole")


def _is_numbered(module: ModuleCall) -> bool:
    return module.path.split(".")[-1].isdecimal()


def _is_named(module: ModuleCall, entries: Sequence[str]) -> bool:
    return any(entry in (module.path, module.kind, module.full_kind) for entry in entries)


def as_on_device(reading: Reading) -> Reading:
    """Return a reading whose runs touch all of each weight that is among their operands, or that they read."""
    runs = []
    for run in reading.runs:
        whole = {number: reading.memories[number].bytes for number in (*run.touches, *sorted(run.seen))}
        runs.append(replace(run, touches=whole))
    return replace(reading, runs=runs)
