"""A plan as JSON, schema version 1, and back without loss: sizes are text, and symbols keep their assumptions.

What follows from the rest (``num_partitions``, ``max_bytes``, ``cut_bytes``, a partition's ``symbolic["total"]``) is
written for readers and not read back.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import sympy

from .errors import PartitionError
from .pareto import Tradeoff
from .plan_parts import Moment, Oversize, Partition, Proof, Witness
from .slice_graph import Slicing
from .symbols import Symbols, from_text, to_text

if TYPE_CHECKING:
    from .plan import Plan

VERSION = 1


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """What JSON can hold of a plan, which is all of it."""
    return {
        "version": VERSION,
        "graph": plan.graph,
        "algorithm": plan.algorithm,
        "objective": plan.objective,
        "max_slack": plan.max_slack,
        "footprint": plan.footprint,
        "budget_bytes": plan.budget_bytes,
        "budget_is_smallest": plan.budget_is_smallest,
        "device_budgets": list(plan.device_budgets),
        "num_devices": plan.num_devices,
        "symbols": _symbols_to_dict(plan.symbols),
        "bindings": dict(plan.bindings),
        "num_partitions": plan.num_partitions,
        "max_bytes": plan.max_bytes,
        "cut_bytes": plan.cut_bytes,
        "certificate": {
            "min_partitions": plan.certificate.min_partitions,
            "witnesses": [[w.first, w.rejected, w.bytes] for w in plan.certificate.witnesses],
            "max_bytes_lower_bound": plan.certificate.max_bytes_lower_bound,
            "max_witnesses": [[w.first, w.rejected, w.bytes] for w in plan.certificate.max_witnesses],
            "orders_tried": plan.certificate.orders_tried,
            "exhaustive": plan.certificate.exhaustive,
        },
        "partitions": [_partition_to_dict(p) for p in plan.partitions],
        "pareto": [row._asdict() for row in plan.tradeoffs],
        "oversize": [_shallow(o) for o in plan.oversize],
        "slicings": [_shallow(s) for s in plan.slicings],
        "keep_together": [group if isinstance(group, str) else list(group) for group in plan.keep_together],
        "unknown_workspace": list(plan.unknown_workspace),
        "devices": list(plan.devices),
        "note": plan.note,
    }


def fields_from_json(text: str) -> dict[str, Any]:
    """The fields of the plan that a JSON text holds.

    Raises:
        PartitionError: the text is no plan, or one of another version.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or "version" not in data:
            raise PartitionError("this JSON is no plan: it has no version")
        if data["version"] != VERSION:
            raise PartitionError(f"this is a plan of version {data['version']}; this release reads {VERSION}")
        return _fields_from_dict(data)
    except PartitionError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PartitionError(f"this text is no plan: {type(error).__name__}: {error}") from error


def _shallow(record: Any) -> dict[str, Any]:
    result = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in result.items()}


_SYMBOLIC = ("weight", "state", "moments")


def _partition_to_dict(partition: Partition) -> dict[str, Any]:
    data = {name: value for name, value in _shallow(partition).items() if name not in _SYMBOLIC}
    data["resident"] = [list(pair) for pair in partition.resident]
    peak = next((m for m in partition.moments if m.node == partition.peak_node), partition.moments[0])
    data["symbolic"] = {
        "weight": to_text(partition.weight),
        "state": to_text(partition.state),
        "activation": to_text(peak.activation),
        "workspace": to_text(peak.workspace),
        "total": partition.total_text,
        "moments": [[m.node, to_text(m.activation), to_text(m.workspace)] for m in partition.moments],
    }
    return data


def _symbols_to_dict(symbols: Symbols) -> dict[str, Any]:
    names: dict[str, list[str]] = {}
    for name, symbol in symbols.dims.items():
        names.setdefault(symbol.name, []).append(name)
    return {
        symbol.name: {
            "hint": symbols.hints.get(symbol),
            "names": names.get(symbol.name, []),
            "assumptions": dict(sorted(symbol._assumptions_orig.items())),
        }
        for symbol in [*symbols.hints, *sorted(symbols.unbacked, key=str)]
    }


_ASSUMPTIONS = {"integer", "positive", "nonnegative", "real"}


def _symbols_from_dict(data: dict[str, Any]) -> Symbols:
    hints: dict[sympy.Symbol, int] = {}
    dims: dict[str, sympy.Symbol] = {}
    unbacked: set[sympy.Symbol] = set()
    for name, entry in data.items():
        assumptions = entry["assumptions"]
        if not set(assumptions) <= _ASSUMPTIONS or not all(isinstance(v, bool) for v in assumptions.values()):
            raise PartitionError(f"the symbol {name} of this plan has assumptions that no size has: {assumptions}")
        symbol = sympy.Symbol(name, **assumptions)
        if entry["hint"] is None:
            unbacked.add(symbol)
        else:
            hints[symbol] = int(entry["hint"])
        dims |= dict.fromkeys(entry["names"], symbol)
    return Symbols(hints, dims, frozenset(unbacked))


def _witnesses(rows: list[list[Any]]) -> tuple[Witness, ...]:
    return tuple(Witness(str(first), str(rejected), int(size)) for first, rejected, size in rows)


def _fields_from_dict(data: dict[str, Any]) -> dict[str, Any]:
    symbols = _symbols_from_dict(data["symbols"])
    known = [*symbols.hints, *symbols.unbacked]

    def partition(entry: dict[str, Any]) -> Partition:
        symbolic = entry["symbolic"]
        plain: dict[str, Any] = {
            f.name: tuple(entry[f.name]) if isinstance(entry[f.name], list) else entry[f.name]
            for f in fields(Partition)
            if f.name not in _SYMBOLIC and (f.name in entry or f.default is MISSING)
        }
        plain["resident"] = tuple((str(name), int(size)) for name, size in entry["resident"])
        moments = tuple(
            Moment(str(node), from_text(activation, known), from_text(workspace, known))
            for node, activation, workspace in symbolic["moments"]
        )
        if not moments:
            raise PartitionError(f"partition {entry['index']} of this plan has no step that could be its peak")
        weight, state = from_text(symbolic["weight"], known), from_text(symbolic["state"], known)
        return Partition(**plain, weight=weight, state=state, moments=moments)

    proof = data["certificate"]
    return {
        "graph": data["graph"],
        "algorithm": data["algorithm"],
        "objective": data["objective"],
        "max_slack": data["max_slack"],
        "footprint": data["footprint"],
        "budget_bytes": int(data["budget_bytes"]),
        "budget_is_smallest": bool(data["budget_is_smallest"]),
        "device_budgets": tuple(map(int, data["device_budgets"])),
        "num_devices": int(data["num_devices"]),
        "symbols": symbols,
        "bindings": {str(k): int(v) for k, v in data["bindings"].items()},
        "partitions": tuple(map(partition, data["partitions"])),
        "certificate": Proof(
            min_partitions=int(proof["min_partitions"]),
            witnesses=_witnesses(proof["witnesses"]),
            max_bytes_lower_bound=int(proof["max_bytes_lower_bound"]),
            max_witnesses=_witnesses(proof["max_witnesses"]),
            orders_tried=int(proof["orders_tried"]),
            exhaustive=bool(proof["exhaustive"]),
        ),
        "tradeoffs": tuple(Tradeoff(**row) for row in data["pareto"]),
        "oversize": tuple(
            Oversize(**{**entry, "nodes": tuple(entry["nodes"])}) for entry in data["oversize"]
        ),
        "slicings": tuple(Slicing(**entry) for entry in data["slicings"]),
        "keep_together": tuple(group if isinstance(group, str) else tuple(group) for group in data["keep_together"]),
        "unknown_workspace": tuple(data["unknown_workspace"]),
        "devices": tuple(data["devices"]),
        "note": str(data.get("note", "")),
    }
