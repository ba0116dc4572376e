"""Find the devices on which the graphs that were compiled before have the weights of a new graph."""

from __future__ import annotations

from collections.abc import Sequence

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.plan.follow_weights import WeightPlaces
from fx_partition.report.compiled_plans import live_graphs

from ..devices.home_device import home_of
from .compiled_graph import CompiledGraph


def weight_places(captured: CapturedGraph, devices: Sequence[str]) -> WeightPlaces | None:
    """Return where the weights of a graph are; None where there is one device, or no weight has a place yet.

    A graph counts as long as its compiled function exists, and was planned for the same list of devices.

    Args:
        captured: the new graph.
        devices: the devices that it is planned for, in order.
    """
    if len(set(devices)) < 2:
        return None
    found: dict[int, set[str]] = {}
    for graph in live_graphs():
        if isinstance(graph, CompiledGraph) and graph.plan.devices == tuple(devices):
            for weight, device in graph.reads:
                if (tensor := weight()) is not None:
                    found.setdefault(id(tensor), set()).add(str(device))
    home = home_of(captured)
    # A weight on the CPU stays there while the rest of the model is on GPUs, whatever the device of its stage is.
    moves = {node.name: weight for node, weight in captured.weights.items() if weight.device.type == home.type}
    known = {name: weight for name, weight in moves.items() if id(weight) in found}
    if not known:
        return None
    return WeightPlaces(
        places={name: frozenset(found[id(weight)]) for name, weight in known.items()},
        originals={name: str(weight.device) for name, weight in known.items()},
    )
