"""Find the modules between which a plan may have boundaries.

Terms
-----
unit
    The module that a step is listed under: the outermost module around it that stays whole, or else its own module.
    A step of a module that contains other units goes with the step before it, at the start with the one behind it.
piece
    Steps in a row of one unit. A boundary may be between two pieces, and never inside one.

Before: the steps of ``embed | model | layers.0.norm | layers.0.mlp | layers.0 | layers.1.norm | ...``
After:  the pieces ``embed and model | layers.0 | layers.1 | ...``
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, TypeAlias

import torch

from fx_partition.common.errors import PartitionError
from fx_partition.common.module_paths import heads
from fx_partition.common.units import shown

from ..capture.captured_graph import CapturedGraph
from ..capture.user_names import ModuleCall, module_calls, module_path
from ..footprint.graph_memory import GraphMemory
from .atoms import Atoms

#: Boundaries between any two atoms, or between modules where a module of a list (a decoder layer) is whole.
NODES, MODULES = "nodes", "modules"
#: Where boundaries may be: between nodes, between modules, or between modules of which some stay whole: classes, their
#: names, and paths.
Boundaries: TypeAlias = "str | type[torch.nn.Module] | Sequence[str | type[torch.nn.Module]]"

# An error lists so many names.
_MOST_NAMES = 6


def read_boundaries(given: Any) -> str | tuple[str, ...]:
    """Return where boundaries may be, in words alone: "nodes", "modules", or the names of what stays whole.

    Raises:
        PartitionError: it is neither a name, nor a class of modules, nor a list of these.

    Example::

        >>> read_boundaries([torch.nn.ReLU, "layers.3"])
        ('torch.nn.modules.activation.ReLU', 'layers.3')
    """
    if given in (NODES, MODULES):
        return str(given)
    listed = [given] if isinstance(given, (str, type)) else given
    if isinstance(listed, Sequence) and listed and all(map(_is_name, listed)):
        names = [name if isinstance(name, str) else f"{name.__module__}.{name.__qualname__}" for name in listed]
        return tuple(dict.fromkeys(names))
    raise PartitionError(
        f'boundaries={shown(given)} is neither "nodes" nor "modules", nor a list of classes and paths of modules, such '
        'as ["LlamaDecoderLayer", "model.layers.3"]'
    )


def _is_name(name: Any) -> bool:
    return (isinstance(name, str) and name != "") or (isinstance(name, type) and issubclass(name, torch.nn.Module))


def at_modules(
    captured: CapturedGraph, memory: GraphMemory, atoms: Atoms, boundaries: str | tuple[str, ...]
) -> Atoms:
    """Return the atoms of a plan whose boundaries are where ``boundaries`` allows them.

    Args:
        captured: the graph.
        memory: its memory, in the order of the trace.
        atoms: as `find_atoms` returns them.
        boundaries: as `read_boundaries` returns it.

    Raises:
        PartitionError: no step comes from a module that ``boundaries`` names, or no node says which it comes from.
    """
    if boundaries == NODES:
        return atoms
    if memory.steps and not any(module_calls(node) for node in captured.gm.graph.nodes):
        raise PartitionError(
            f"boundaries={shown(boundaries)} keeps modules whole, and no node of this graph says which module it comes "
            'from; trace the model with torch.export or torch.fx.symbolic_trace, or use boundaries="nodes"'
        )
    return between_pieces(atoms, find_units(captured, memory, boundaries).of)


@dataclass(frozen=True)
class Units:
    """The units of a graph.

    Attributes:
        of: the path of the unit of each step, in the order of the trace; "" for the model itself.
        whole: the paths of those that stay whole whatever modules they contain.
    """

    of: tuple[str, ...]
    whole: frozenset[str]


def find_units(
    captured: CapturedGraph, memory: GraphMemory, boundaries: str | tuple[str, ...], root: str = ""
) -> Units:
    """Return the units of a graph; linear in its steps and the modules around each.

    Args:
        captured: the graph.
        memory: its memory, in the order of the trace.
        boundaries: as `read_boundaries` returns it; the units of "nodes" are those of "modules".
        root: the path of the user's model in the captured one.

    Raises:
        PartitionError: no step comes from a module that ``boundaries`` names.
    """
    nodes = {node.name: node for node in captured.gm.graph.nodes}
    calls = [[_below(call, root) for call in module_calls(nodes[step.node])] for step in memory.steps]
    names = None if isinstance(boundaries, str) else frozenset(boundaries)
    if names is not None:
        _refuse_unknown(names, calls)
    whole = [next((call.path for call in around if _stays_whole(call, names)), None) for around in calls]
    own = [plain_path(module_path(nodes[step.node]), root) for step in memory.steps]
    found = [path if block is None else block for block, path in zip(whole, own, strict=True)]
    kept = frozenset(block for block in whole if block is not None)
    return Units(tuple(_without_containers(found, kept)), kept)


def between_pieces(atoms: Atoms, units: Sequence[str]) -> Atoms:
    """Return atoms in the same order, of which none begins inside a piece.

    Args:
        atoms: as `find_atoms` returns them.
        units: the unit of each step, in the order of the trace.
    """
    position = {step: place for place, step in enumerate(atoms.order)}
    last = list(range(len(atoms.order)))  # of the pieces that begin at each position, where the last one ends
    for steps in _pieces(units):
        places = [position[step] for step in steps]
        last[min(places)] = max(last[min(places)], *places)
    reached = list(accumulate(last, max))
    starts = [start for start in atoms.starts[:-1] if start == 0 or reached[start - 1] < start]
    return Atoms(atoms.order, (*starts, atoms.starts[-1]))


def _pieces(units: Sequence[str]) -> Iterator[list[int]]:
    for _, steps in groupby(range(len(units)), units.__getitem__):
        yield list(steps)


def _stays_whole(call: ModuleCall, names: frozenset[str] | None) -> bool:
    if names is None:
        return call.path.rpartition(".")[2].isdecimal()
    return not names.isdisjoint((call.path, call.kind, call.full_kind))


def _without_containers(found: Sequence[str], whole: frozenset[str]) -> Iterator[str]:
    """Yield the unit of each step, where a step of a module that contains others takes that of the one before it.

    Example: ``["", "embed", "", "layers.0", "layers.0"]`` becomes ``["embed", "embed", "embed", "layers.0", ...]``.
    """
    containers = {head for path in set(found) for head in heads(path) if head != path} | {""}
    containers -= whole
    newest = next((path for path in found if path not in containers), "")
    for path in found:
        newest = newest if path in containers else path
        yield newest


def _below(call: ModuleCall, root: str) -> ModuleCall:
    return call._replace(path=plain_path(call.path, root))


def plain_path(path: str, root: str) -> str:
    """Return a path in the captured model as the path in the user's model, which is at `root` in it."""
    return "" if path == root else path.removeprefix(f"{root}.")


def _refuse_unknown(names: frozenset[str], calls: Sequence[Sequence[ModuleCall]]) -> None:
    classes = dict.fromkeys(call.kind for around in calls for call in around)
    known = {name: None for around in calls for call in around for name in (call.path, call.kind, call.full_kind)}
    for name in sorted(names):
        if name not in known:
            raise PartitionError(
                f"boundaries names {name!r}, and no node of the graph comes from a module of that class or path; "
                f"{_near(name, known, classes)}"
            )


def _near(name: str, known: Mapping[str, None], classes: Mapping[str, None]) -> str:
    """Return the names that are like another, in words; the classes of the graph if none is."""
    last = {other.rpartition(".")[2].lower(): other for other in reversed([*filter(None, known)])}
    near = difflib.get_close_matches(name, filter(None, known), _MOST_NAMES // 2)
    near += [last[key] for key in difflib.get_close_matches(name.rpartition(".")[2].lower(), last, _MOST_NAMES // 2)]
    if near:
        return f"near it are {', '.join(map(repr, list(dict.fromkeys(near))[:_MOST_NAMES]))}"
    more = ", ..." if len(classes) > _MOST_NAMES else ""
    return f"there are the classes {', '.join(map(repr, list(classes)[:_MOST_NAMES]))}{more}"
