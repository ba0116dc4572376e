"""Write a plan as JSON without loss, in the form of ``plan_schema.json``; `json_reader` reads it back.

Sizes are text, and symbols keep their assumptions. Numbers that follow from others (``num_partitions``, ``max_bytes``,
``cut_bytes``, a partition's ``symbolic["total"]``) are written for human readers. The reader only checks that they
agree with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..capture.size_text import to_text
from ..capture.symbolic_sizes import Symbols
from .records import Partition

VERSION = 1
# JSON has no number for infinity.
ANY_SLACK = "any"


def plan_to_dict(plan: Mapping[str, Any], *, num_partitions: int, max_bytes: int, cut_bytes: int) -> dict[str, Any]:
    """Return all fields of a plan as JSON can hold them.

    Args:
        plan: the fields by name.
        num_partitions, max_bytes, cut_bytes: numbers that follow from the fields, for readers.
    """
    return {
        "version": VERSION,
        "graph": plan["graph"],
        "algorithm": plan["algorithm"],
        "objective": plan["objective"],
        "max_slack": ANY_SLACK if plan["max_slack"] == math.inf else plan["max_slack"],
        "footprint": plan["footprint"],
        "memory": plan["memory"],
        "boundaries": plan["boundaries"] if isinstance(plan["boundaries"], str) else list(plan["boundaries"]),
        "budget_bytes": plan["budget_bytes"],
        "budget_is_smallest": plan["budget_is_smallest"],
        "device_budgets": list(plan["device_budgets"]),
        "num_devices": plan["num_devices"],
        "symbols": _symbols_to_dict(plan["symbols"]),
        "bindings": dict(plan["bindings"]),
        "num_partitions": num_partitions,
        "max_bytes": max_bytes,
        "cut_bytes": cut_bytes,
        "certificate": {
            "min_partitions": plan["certificate"].min_partitions,
            "witnesses": [[w.first, w.rejected, w.bytes] for w in plan["certificate"].witnesses],
            "max_bytes_lower_bound": plan["certificate"].max_bytes_lower_bound,
            "max_witnesses": [[w.first, w.rejected, w.bytes] for w in plan["certificate"].max_witnesses],
            "orders_tried": plan["certificate"].orders_tried,
            "exhaustive": plan["certificate"].exhaustive,
            "fewest_over_all_orders": plan["certificate"].fewest_over_all_orders,
            "moment": plan["certificate"].moment,
            "partitions_before": plan["certificate"].partitions_before,
            "partitions_behind": plan["certificate"].partitions_behind,
        },
        "partitions": [_partition_to_dict(p) for p in plan["partitions"]],
        "pareto": [row._asdict() for row in plan["tradeoffs"]],
        "oversize": [_shallow(o) for o in plan["oversize"]],
        "slicings": [_shallow(s) for s in plan["slicings"]],
        "keep_together": [group if isinstance(group, str) else list(group) for group in plan["keep_together"]],
        "unknown_workspace": list(plan["unknown_workspace"]),
        "estimated_workspace": list(plan["estimated_workspace"]),
        "devices": list(plan["devices"]),
        "note": plan["note"],
        "sessions": plan["sessions"],
        "follows_weights": plan["follows_weights"],
        "modules": {
            "runs": [[run.path, run.stage, run.mixes] for run in plan["modules"].runs],
            "weights": {name: list(stages) for name, stages in plan["modules"].weights.items()},
            "called_again": list(plan["modules"].called_again),
        },
    }


def _shallow(record: Any) -> dict[str, Any]:
    result = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in result.items()}


# The fields of a partition that are text under "symbolic".
SYMBOLIC = ("weight", "state", "moments")


def _partition_to_dict(partition: Partition) -> dict[str, Any]:
    data = {name: value for name, value in _shallow(partition).items() if name not in SYMBOLIC}
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
            **({"bound": to_text(bound)} if (bound := symbols.unbacked.get(symbol)) is not None else {}),
        }
        for symbol in [*symbols.hints, *symbols.unbacked]
    }
