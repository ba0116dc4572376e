"""Find the stage of every module and weight of a graph, for other engines (see `fx_partition.engines`).

Before: nodes by the names of their partitions, {"embedding": 0, "linear": 0, "linear_1": 1}
After:  the runs ("embed", 0), ("blocks.0", 0), ("blocks.1", 1); no weight is left over
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.module_paths import heads
from fx_partition.engines.module_stages import ModuleRun, ModuleStages

from ..capture.captured_graph import CapturedGraph
from ..capture.module_members import all_tensors
from ..capture.tensor_storage import storage_key
from ..capture.tensor_subclasses import plain_tensors
from ..capture.user_names import module_calls, module_path


def module_stages(captured: CapturedGraph, stage_of: Mapping[str, int]) -> ModuleStages:
    """Return the modules of a graph with their stages.

    Args:
        captured: the graph, as the plan cuts it.
        stage_of: the stage of each step, by the name of its node; other nodes take no part in a plan.
    """
    steps = [node for node in captured.gm.graph.nodes if node.name in stage_of]
    stages = ModuleStages(tuple(ModuleRun(module_path(node), stage_of[node.name]) for node in steps))
    memory = _memory_of(captured)
    reads = _reads(captured, stage_of)
    readers: dict[Hashable, set[int]] = {}
    for node in steps:
        for key in reads[node]:
            readers.setdefault(key, set()).add(stage_of[node.name])
    homes: dict[Hashable, set[int]] = {}
    for name, keys in memory.items():
        for key in keys:
            homes.setdefault(key, set()).update(_homes(name, stages))
    mixing = _mixing(captured, stage_of, stages, reads, homes)
    runs: list[ModuleRun] = []
    for node, run in zip(steps, stages.runs, strict=True):
        mixes = node.name if node.name in mixing else ""
        if runs and (runs[-1].path, runs[-1].stage) == (run.path, run.stage):
            runs[-1] = replace(runs[-1], mixes=runs[-1].mixes or mixes)
        else:
            runs.append(replace(run, mixes=mixes))
    weights: dict[str, tuple[int, ...]] = {}
    for name, keys in memory.items():
        read_by = set().union(*(readers.get(key, set()) for key in keys))
        if not any(read_by <= {home} for home in _homes(name, stages)):
            weights[name] = tuple(sorted(read_by))
    return ModuleStages(tuple(runs), weights, _called_again(captured))


def _called_again(captured: CapturedGraph) -> tuple[str, ...]:
    """Return the modules that are called more than once: tracers give each call a key of its own, "act" and "act@1"."""
    calls: dict[str, set[str]] = {}
    for node in captured.gm.graph.nodes:
        if keys := node.meta.get("nn_module_stack"):
            for key, call in zip(keys, module_calls(node), strict=True):
                calls.setdefault(call.path, set()).add(key)
    return tuple(path for path, keys in calls.items() if path and len(keys) > 1)


def _memory_of(captured: CapturedGraph) -> dict[str, frozenset[Hashable]]:
    """Return for each parameter and buffer, by all of its names, the memory in which it is."""
    found = {name: _keys(tensor) for name, tensor in all_tensors(captured.gm, every_name=True).items()}
    for node, tensor in captured.weights.items():
        if node.op == "placeholder":  # Dynamo passes parameters as inputs
            found[captured.names[node]] = _keys(tensor)
    return found


def _keys(tensor: torch.Tensor) -> frozenset[Hashable]:
    return frozenset(map(storage_key, plain_tensors(tensor)))


def _reads(captured: CapturedGraph, stage_of: Mapping[str, int]) -> dict[torch.fx.Node, frozenset[Hashable]]:
    """Return for each node the memory of the weights that it reads; a view of a weight that is no step hands it on."""
    modules = dict(captured.gm.named_modules())
    found: dict[torch.fx.Node, frozenset[Hashable]] = {}
    shown: dict[torch.fx.Node, frozenset[Hashable]] = {}
    for node in captured.gm.graph.nodes:
        if node in captured.weights:
            shown[node] = _keys(captured.weights[node])
            continue
        own = all_tensors(modules[str(node.target)]).values() if node.op == "call_module" else ()
        given = [shown[source] for source in node.all_input_nodes if source in shown]
        found[node] = frozenset().union(*map(_keys, own), *given)
        if node.name not in stage_of:
            shown[node] = found[node]
    return found


def _homes(name: str, stages: ModuleStages) -> set[int]:
    """Return the stages of the modules that hold a weight and are on one stage alone; {} if all are divided."""
    found = [stages.stages_of.get(head, frozenset()) for head in heads(name.rpartition(".")[0])]
    return {stage for held in found if len(held) == 1 for stage in held}


def _mixing(
    captured: CapturedGraph,
    stage_of: Mapping[str, int],
    stages: ModuleStages,
    reads: Mapping[torch.fx.Node, frozenset[Hashable]],
    homes: Mapping[Hashable, set[int]],
) -> set[str]:
    """Return the steps that would find tensors on two devices if only the inputs of whole modules were moved.

    A step of a whole module runs on the module's device. A step of a divided module runs where its inputs are.
    """
    inputs_at = min(stage_of.values(), default=0)
    at: dict[torch.fx.Node, set[int]] = {}
    found: set[str] = set()
    for node in captured.gm.graph.nodes:
        if node.op == "output" or node in captured.weights:
            continue
        if not _has_tensors(captured.values.get(node)):
            at[node] = set()
        elif node.op == "placeholder":
            at[node] = {inputs_at}
        elif node.name not in stage_of:
            at[node] = set().union(*(at.get(source, set()) for source in node.all_input_nodes))
        elif len(stages.stages_of[module_path(node)]) == 1:
            at[node] = {stage_of[node.name]}
        else:
            own = stage_of[node.name]
            given = set().union(*(at.get(source, set()) for source in node.all_input_nodes))
            for home in (homes.get(key) or {own} for key in reads[node]):
                if given.isdisjoint(home):
                    given.add(own if own in home else min(home))
            if len(given) > 1:
                found.add(node.name)
            at[node] = {own} if len(given) > 1 else given
    return found


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
