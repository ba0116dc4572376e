"""accelerate.infer_auto_device_map: modules in order, by their weights, each device filled up to the budget.

It knows neither activations nor workspace, goes through modules in the order in which they were registered, keeps tied
modules with the first of them, and maps what finds no place to "disk". It is given more devices than it could use. It
is asked twice: free to divide blocks, and with the model's own list of blocks that are not to be divided.

The map names modules; the scorer wants nodes. A node belongs to the innermost mapped module that it comes from. One
that comes from none (a residual add of a block that was divided) or from one without parameters (a dropout, the rotary
embedding, which is registered last and needed first) goes with the latest of its producers or with the earliest of its
consumers; both are scored, and the better is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch.fx

from fx_partition.passes.capture.user_names import module_path

from .case import Case, NoPlan, Planned, timed
from .scorer import Score


def plan(case: Case, budget: int) -> Planned:
    return _ask(case, budget, [])


def plan_whole_blocks(case: Case, budget: int) -> Planned:
    blocks = sorted(getattr(case.graph.model, "_no_split_modules", None) or [])
    if not blocks:
        raise NoPlan("the model names no blocks")
    return _ask(case, budget, blocks)


def _ask(case: Case, budget: int, blocks: list[str]) -> Planned:
    from accelerate import infer_auto_device_map

    most = 4 * case.fewest(budget) + 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that modules are tied
        found, seconds = timed(
            lambda memory: infer_auto_device_map(case.graph.model, memory, no_split_module_classes=blocks),
            lambda: dict.fromkeys(range(most), budget),
        )
    elsewhere = sorted({str(device) for device in found.values() if not isinstance(device, int)})
    if elsewhere:
        raise NoPlan(f"maps modules to {', '.join(elsewhere)}")
    bare = {path for path, module in case.graph.model.named_modules() if next(module.parameters(), None) is None}
    found = {path: device for path, device in found.items() if path not in bare}
    choices = [by_module(case.gm, found, first) for first in ("producer", "consumer")]
    return Planned(min(choices, key=lambda assignment: _badness(case.score(assignment))), seconds)


def _badness(score: Score) -> tuple[int, int, int, int]:
    return score.back_edges, score.max_bytes, score.num_partitions, score.cut_bytes


def by_module(gm: torch.fx.GraphModule, device_of: Mapping[str, int], first: str) -> dict[str, int]:
    """Node by node what a map of modules says; ``first``: which neighbour places a node that it does not cover."""
    calls = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    placed: dict[torch.fx.Node, int] = {}
    for node in calls:
        path = module_path(node)
        while path and path not in device_of:
            path = path.rpartition(".")[0]
        if path in device_of:
            placed[node] = device_of[path]

    def from_producers() -> None:
        for node in calls:
            sources = [placed[source] for source in node.all_input_nodes if source in placed]
            if node not in placed and sources:
                placed[node] = max(sources)

    def from_consumers() -> None:
        for node in reversed(calls):
            users = [placed[user] for user in node.users if user in placed]
            if node not in placed and users:
                placed[node] = min(users)

    sweeps = (from_producers, from_consumers)
    for sweep in sweeps if first == "producer" else sweeps[::-1]:
        sweep()
    return {node.name: placed.get(node, 0) for node in calls}
