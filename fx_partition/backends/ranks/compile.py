"""``options={"devices": "ranks"}``: make the same plan on every rank, and compile this rank's stages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.captured_graph import CapturedGraph, value_of
from fx_partition.passes.capture.fake_tensors import shape_env_of
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan

from ..devices.home_device import refuse_several
from ..lowering.compile_stages import Lowered, lower
from ..lowering.graph_context import GraphContext
from ..lowering.guard_text import assume_all, guards_from_text, guards_to_text
from ..lowering.stage import Stage, split_stages
from ..lowering.states_together import plan_states_together
from ..microbatch.microbatch_plan import MicrobatchGraph, MicrobatchPlan
from ..process_group.consistency import Document, refuse_differences
from ..process_group.rank_team import Team
from ..weights.lazy_weights import fingerprint, materialize
from .boundaries import RankBoundaries
from .microbatches import Microbatches, refuse_writes
from .runtime import RankFunction
from .schedule import Messages


def compile_ranks(context: GraphContext) -> tuple[Callable[..., Any], Plan, list[Stage]]:
    """Compile this rank's stages of a graph.

    Args:
        context: the graph; ``options.request.devices`` are the ranks. Of the inputs only the shapes count, except on
            rank 0.

    Returns:
        The function of the graph's inputs, the plan, and all stages, of which this rank compiled its own.

    Raises:
        PartitionError: gradients are needed, the inputs of ranks differ, or a rank cannot compile its stages.
        RankError: a rank did not call the model.
    """
    captured, memory, home = context.captured, context.memory, context.home
    if context.needs_gradients:
        raise PartitionError(
            "devices=\"ranks\" is for inference, and an input or a parameter requires a gradient: run under "
            "torch.no_grad(), or train with fx_partition.to_pipeline_stages"
        )
    refuse_several(captured, "a rank runs its stages on one device")
    ranked = context.options.ranks
    assert ranked is not None
    team = Team.current(ranked.timeout, home, ranked.group)
    microbatches: Microbatches | None = None
    with team.consistency.alive():
        graph: MicrobatchGraph | None = None
        if found := MicrobatchPlan.of(context):
            refuse_writes(memory)
            plan, planned = found.plan, context.planned(found.plan)
            graph = found.refake(planned.captured)
            captured = graph.captured
            partitions = split_stages(captured, plan, planned.memory)
        else:
            plan, captured, partitions = plan_states_together(
                captured,
                memory,
                context.options.request,
                lambda request: make_plan(captured, memory, request),
                lambda partition: partition.device,
                says="written by the graph and used by several ranks; all that uses it stays together on one, which "
                "may need more partitions or larger ones",
            )
        document = _document(captured, plan, ranked.given, context.inputs, memory.written)
        refuse_differences(team.consistency.exchange(document, "plan this graph"))
        team.connect()
        ranks = [partition.slot % team.size for partition in plan.partitions]
        names = {rank: _stage_names(plan, ranks, rank) for rank in range(team.size)}
        messages = Messages(captured, partitions, ranks, team.size, ranked.output, memory.written)
        boundaries = RankBoundaries(captured, partitions, ranks, messages)
        stages = [Stage(i, home, partition, boundaries) for i, partition in enumerate(partitions)]
        own = [stage for stage, rank in zip(stages, ranks, strict=True) if rank == team.rank]
        lowered, guards_by_rank = _compile(team, names, own, stages, replace(context, captured=captured))
        env = shape_env_of(captured.values.values())
        if env and graph:
            of_ranks = (guard for text in guards_by_rank for guard in guards_from_text(text, env))
            guards = [*graph.refaked.guards, *of_ranks]
            microbatches = Microbatches(graph, list(dict.fromkeys(guards)))
        elif env:
            for text in guards_by_rank:
                assume_all(env, text)
    crossing = {node: lowered.crossings.value(node) for partition in partitions for node in partition.outputs}
    captured = replace(captured, values={**captured.values, **crossing})
    function = RankFunction(captured, own, lowered.compiled, messages, team, names, home, microbatches)
    lowered.install(function.put)
    return function, plan, stages


def _compile(
    team: Team,
    names: Mapping[int, str],
    own: Sequence[Stage],
    stages: Sequence[Stage],
    context: GraphContext,
) -> tuple[Lowered, list[str]]:
    """Compile this rank's stages and wait for all ranks; return the code, and each rank's guards on sizes as text."""
    real = context.real
    env = shape_env_of(map(value_of, real))
    before = len(env.guards) if env else 0
    failed: Exception | None = None
    document = {"error": "", "guards": "[]"}
    try:
        materialize(real[node] for stage in own for node in stage.partition.inputs if node in real)
        lowered = lower(context, own, graph=stages)
        if env:
            document["guards"] = guards_to_text(guard.expr for guard in env.guards[before:])
    except Exception as error:
        failed = error
        document["error"] = f"{type(error).__name__}: {error}"
    documents = team.consistency.exchange(document, "compile its stages")
    for rank, given in enumerate(documents):
        if given["error"]:
            message = f"rank {rank} could not compile its part ({names[rank]}): {given['error']}"
            raise PartitionError(message) from failed
    return lowered, [given["guards"] for given in documents]


def _document(
    captured: CapturedGraph,
    plan: Plan,
    given: Mapping[str, Any],
    example_inputs: Sequence[Any],
    written: frozenset[str],
) -> Document:
    """Return the texts that must be equal on all ranks; a text that may explain another difference comes first."""
    document = {
        "version of torch": torch.__version__,
        "version of fx-partition": importlib.metadata.version("fx-partition"),
    }
    same = given.keys() - {"report", "group"}
    document |= {f"options[{name!r}]": repr(given[name]) for name in sorted(same)}
    for node, value in zip(captured.gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True):
        if isinstance(value, torch.Tensor):
            kind = f"{tuple(value.shape)} with strides {value.stride()}, {value.dtype} on {value.device.type}"
            document[f"shape of {captured.names.get(node, node.name)}"] = kind
    state = {node: tensor for node, tensor in captured.weights.items() if node.name not in written}
    samples = fingerprint({captured.names.get(node, node.name): tensor for node, tensor in state.items()})
    document |= {f"contents of the weight {name}": sample for name, sample in samples.items()}
    document["graph"] = _digest(without_indices(captured.gm.graph))
    document["plan"] = _digest(plan.to_json())
    return document


def without_indices(graph: torch.fx.Graph) -> str:
    """Return the text of a graph without the indices of GPUs: ranks trace it on different GPUs."""
    return re.sub(r"\bcuda:\d+", "cuda", str(graph))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stage_names(plan: Plan, ranks: Sequence[int], rank: int) -> str:
    """Describe the stages of a rank: "stage 1 (layers.4 .. layers.7)"."""
    homes = zip(plan.partitions, ranks, strict=True)
    own = [f"stage {p.index} ({p.first} .. {p.last})" for p, home in homes if home == rank]
    return ", ".join(own) or "without a stage"
