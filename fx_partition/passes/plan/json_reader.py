"""Read a plan from untrusted JSON text: return its fields, or raise an error that names the bad field.

`json_form` checks the types and bounds of all fields. This module checks that fields do not contradict each other, and
that every size has a value under the plan's own bindings that is not negative. It does not check that the figures are
right for a model: `verify` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import sympy

from fx_partition.common.errors import PartitionError
from fx_partition.engines.module_stages import ModuleRun, ModuleStages

from ..capture.size_text import LARGEST, SizeReader
from ..capture.symbolic_sizes import Size, Symbols
from ..constraints.module_boundaries import NODES
from ..partitioner.pareto import Tradeoff
from ..slicing.rewrite import Slicing
from .json_form import Unreadable, read_form, shown
from .records import Oversize, Partition, PeakCandidate, Proof, Witness
from .request import ON_CHIP
from .serialization import ANY_SLACK, SYMBOLIC

# What plans of earlier releases say of modules.
_NO_MODULES: dict[str, Any] = {"runs": [], "weights": {}, "called_again": []}


def fields_from_json(text: str) -> dict[str, Any]:
    """Return the fields of a plan from its JSON text.

    Raises:
        PartitionError: the text is not JSON, or not a plan, or a plan of another version; it names the field.
    """
    data = read_form(text)
    for path, why in _faults(data):
        raise Unreadable(path, why)
    return _Fields(data).read()


def _faults(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (path, why) for each field that contradicts another."""
    partitions, devices, count = data["partitions"], data["devices"], data["num_devices"]
    places = count or len(partitions)
    holder: dict[str, int] = {}
    slot = -1
    for i, partition in enumerate(partitions):
        at = f"partitions[{i}]"
        if partition["index"] != i:
            yield f"{at}.index", f"it is {partition['index']} and must be {i}: partitions stand in their order"
        for name in partition["nodes"]:
            if name in holder:
                yield f"{at}.nodes", f"{shown(name)} is in partitions[{holder[name]}] too"
            holder[name] = i
        own = set(partition["nodes"])
        for row, (name, *_) in enumerate(partition["symbolic"]["moments"]):
            if name not in own:
                yield f"{at}.symbolic.moments[{row}]", f"{shown(name)} is not a node of the partition"
        if partition["peak_node"] not in own:
            yield f"{at}.peak_node", f"{shown(partition['peak_node'])} is not a node of the partition"
        if not count and partition["slot"] != i:
            yield f"{at}.slot", f"it is {partition['slot']} and must be {i}: num_devices is 0, any number"
        if count and not (slot < partition["slot"] and partition["slot"] // count <= max(slot, 0) // count + 1):
            before = f"partitions[{i - 1}].slot = {slot}" if i else "the start"
            why = f"{partition['slot']} does not follow {before}: {count} devices take turns in their order"
            yield f"{at}.slot", why
        slot = partition["slot"]
        named = devices[slot % len(devices)] if devices else ""
        if partition["device"] != named:
            says = f"devices[{slot % len(devices)}] is {shown(named)}" if devices else "devices names none"
            yield f"{at}.device", f"it is {shown(partition['device'])}, and for {at}.slot = {slot} {says}"
        copies = [slot % places, *partition.get("replicas", ())]
        if len(set(copies)) < len(copies) or max(copies) >= places:
            why = f"they are not other devices; num_devices is {count}, partitions are {len(partitions)}"
            yield f"{at}.replicas", why
        code = partition.get("code")
        if code is not None and code > i:
            yield f"{at}.code", f"it is {code}, and the first partition of the same code cannot be behind {i}"
    derived = {
        "num_partitions": len(partitions),
        "max_bytes": max((partition["total_bytes"] for partition in partitions), default=0),
        "cut_bytes": sum(partition["recv_bytes"] for partition in partitions),
    }
    for name, number in derived.items():
        if data.get(name, number) != number:
            yield name, f"it is {data[name]}, and the partitions have {number}"
    if data["device_budgets"] and len(data["device_budgets"]) != count:
        yield "device_budgets", f"they are {len(data['device_budgets'])}, and num_devices is {count}"
    for key in ("witnesses", "max_witnesses"):
        for row, (first, rejected, _) in enumerate(data["certificate"][key]):
            for name in (first, rejected):
                if name not in holder:
                    yield f"certificate.{key}[{row}]", f"{shown(name)} is not a node of the plan"
    moment = data["certificate"].get("moment", "")
    if moment and moment not in holder:
        yield "certificate.moment", f"{shown(moment)} is not a node of the plan"
    modules = data.get("modules", _NO_MODULES)
    stages = [(f"modules.runs[{row}][1]", stage) for row, (_, stage, _) in enumerate(modules["runs"])]
    for name, found in modules["weights"].items():
        stages += [(f"modules.weights.{name}[{row}]", stage) for row, stage in enumerate(found)]
    for path, stage in stages:
        if stage >= len(partitions):
            yield path, f"it is {stage}, and partitions are {len(partitions)}"
    for name in data["bindings"]:
        if name not in data["symbols"]:
            yield f"bindings.{name}", "no symbol has this name"
    dims = [name for entry in data["symbols"].values() for name in entry["names"]]
    if len(set(dims)) < len(dims):
        yield "symbols", "two have one name of a dimension"


def _contradicted(symbolic: dict[str, Any], peak_node: str) -> Iterator[tuple[str, str]]:
    """Yield (name, why) for each size of the peak, written for readers, that contradicts the moments."""
    moments = symbolic["moments"]
    peak = next((moment for moment in moments if moment[0] == peak_node), moments[0])
    for name, text in zip(("activation", "workspace"), peak[1:], strict=True):
        if symbolic.get(name, text) != text:
            yield name, f"it is {shown(symbolic[name])}, and the moment of the peak says {shown(text)}"


class _Fields:
    """Reads the fields of a plan that passed the schema."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self._symbols = _symbols(data["symbols"], data["bindings"])
        self._numbers = self._symbols.bind(_positive(data["bindings"]))
        self._sizes = SizeReader(self._numbers)

    def read(self) -> dict[str, Any]:
        data = self._data
        proof, between = data["certificate"], data.get("boundaries", NODES)
        return {
            **{name: data[name] for name in (
                "graph", "algorithm", "objective", "footprint", "budget_bytes", "budget_is_smallest", "num_devices"
            )},
            **{name: tuple(data[name]) for name in ("device_budgets", "unknown_workspace", "devices")},
            "max_slack": math.inf if data["max_slack"] == ANY_SLACK else data["max_slack"],
            "symbols": self._symbols,
            "bindings": data["bindings"],
            "partitions": tuple(self._partition(i, entry) for i, entry in enumerate(data["partitions"])),
            "certificate": Proof(
                **{**proof, **{name: _witnesses(proof[name]) for name in ("witnesses", "max_witnesses")}}
            ),
            "tradeoffs": tuple(Tradeoff(**row) for row in data["pareto"]),
            "oversize": tuple(Oversize(**{**entry, "nodes": tuple(entry["nodes"])}) for entry in data["oversize"]),
            "slicings": tuple(Slicing(**entry) for entry in data["slicings"]),
            "keep_together": tuple(g if isinstance(g, str) else tuple(g) for g in data["keep_together"]),
            "estimated_workspace": tuple(data.get("estimated_workspace", ())),
            "note": data.get("note", ""),
            "sessions": data.get("sessions", 1),
            "follows_weights": data.get("follows_weights", False),
            "modules": _modules(data.get("modules", _NO_MODULES)),
            "memory": data.get("memory", ON_CHIP),
            "boundaries": tuple(between) if isinstance(between, list) else between,
        }  # fmt: skip

    def _partition(self, index: int, entry: dict[str, Any]) -> Partition:
        symbolic, path = entry["symbolic"], f"partitions[{index}].symbolic"
        plain: dict[str, Any] = {
            f.name: tuple(entry[f.name]) if isinstance(entry[f.name], list) else entry[f.name]
            for f in fields(Partition)
            if f.name not in SYMBOLIC and (f.name in entry or f.default is MISSING)
        }
        plain["resident"] = tuple((name, size) for name, size in entry["resident"])
        moments = tuple(
            PeakCandidate(
                node,
                self._size(f"{path}.moments[{row}][1]", activation),
                # One of several entries of a step may be the largest under other bindings, and below 0 under these.
                self._size(f"{path}.moments[{row}][2]", workspace, least=-LARGEST),
            )
            for row, (node, activation, workspace) in enumerate(symbolic["moments"])
        )
        weight, state = (self._size(f"{path}.{name}", symbolic[name]) for name in ("weight", "state"))
        made = Partition(**plain, weight=weight, state=state, moments=moments)
        for name, why in _contradicted(symbolic, entry["peak_node"]):
            raise Unreadable(f"{path}.{name}", why)
        self._check_total(f"{path}.total", symbolic.get("total"), made)
        return made

    def _check_total(self, path: str, text: str | None, partition: Partition) -> None:
        """Raise an error if the footprint that is written for readers differs under the plan's bindings."""
        if text is None:
            return
        try:
            total = self._sizes.read(text).value
        except PartitionError as error:
            if text != partition.total_text:  # with very many entries it is longer than a size may be
                raise Unreadable(path, str(error)) from error
            return
        if total != (expected := partition.footprint(self._numbers)):
            why = f"it is {shown(text)}, and the other sizes make it {expected} for the plan's bindings"
            raise Unreadable(path, why)

    def _size(self, path: str, text: str, least: int = 0) -> Size:
        try:
            size, value = self._sizes.read(text)
        except PartitionError as error:
            raise Unreadable(path, str(error)) from error
        if value is None:
            raise Unreadable(path, f"{shown(text)} has no value for the plan's bindings")
        if not least <= value <= LARGEST:
            raise Unreadable(path, f"its value for the plan's bindings is {shown(value)}, which cannot be a size")
        return size


def _positive(bindings: dict[str, int]) -> dict[str, int]:
    """Return the bindings without zeros: a hint may be 0, but a symbol cannot be bound to 0."""
    return {name: number for name, number in bindings.items() if number}


def _symbols(entries: dict[str, Any], bindings: dict[str, int]) -> Symbols:
    hints: dict[sympy.Symbol, int] = {}
    dims: dict[str, sympy.Symbol] = {}
    unbacked: dict[sympy.Symbol, Size | None] = {}
    for name, entry in entries.items():
        try:
            symbol = sympy.Symbol(name, **entry["assumptions"])
        except ValueError as error:  # positive and not nonnegative
            raise Unreadable(f"symbols.{name}.assumptions", "they contradict each other") from error
        if entry["hint"] is None:
            unbacked[symbol] = None
        else:
            hints[symbol] = entry["hint"]
        dims |= dict.fromkeys(entry["names"], symbol)
    numbers = Symbols(hints, dims, unbacked).known_numbers(_positive(bindings))
    reader = SizeReader({symbol: numbers[symbol] for symbol in hints})
    for symbol in unbacked:
        if (text := entries[symbol.name].get("bound")) is not None:
            unbacked[symbol] = _bound(f"symbols.{symbol.name}.bound", text, reader)
    return Symbols(hints, dims, unbacked)


def _bound(path: str, text: str, reader: SizeReader) -> Size:
    try:
        size, value = reader.read(text)
    except PartitionError as error:
        raise Unreadable(path, str(error)) from error
    if value is None or value > LARGEST:
        raise Unreadable(path, f"{shown(text)} has no value for the plan's bindings")
    return size


def _modules(data: dict[str, Any]) -> ModuleStages:
    weights = {name: tuple(stages) for name, stages in data["weights"].items()}
    return ModuleStages(tuple(ModuleRun(*row) for row in data["runs"]), weights, tuple(data["called_again"]))


def _witnesses(rows: list[list[Any]]) -> tuple[Witness, ...]:
    return tuple(Witness(*row) for row in rows)
