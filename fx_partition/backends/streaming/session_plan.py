"""Plan for sessions: the state of all of them counts, and a warning says where it does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from fx_partition.common.errors import PartitionError, PartitionWarning
from fx_partition.common.units import format_bytes
from fx_partition.passes.capture.capture_model import ExampleInputs
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import TIMED, Request


def request_for_sessions(
    captured: CapturedGraph,
    memory: GraphMemory,
    request: Request,
    sessions: int,
    example_inputs: ExampleInputs | None,
) -> Request:
    """Return the request of a plan in which the state of each session counts.

    Raises:
        PartitionError: the model writes no buffer, it writes a parameter, ``session`` is an argument of its own, or the
            request has a time objective.
    """
    written = [node for node in captured.weights if node.name in memory.written]
    if not written:
        raise PartitionError(
            f"sessions={sessions} gives each sequence its own copy of the buffers that the model writes, and this "
            "model writes none; leave sessions= out. A cache that is an input belongs to the request that brings it"
        )
    for node in written:
        if memory.weight_of[node.name] not in memory.state:
            raise PartitionError(
                f"the model writes {captured.names[node]}, a parameter, which all sessions would share; make it a "
                "buffer, or leave sessions= out"
            )
    if isinstance(example_inputs, Mapping) and "session" in example_inputs:
        raise PartitionError(
            "the model has a keyword argument session, and with sessions= a request names its session by it; rename "
            "the model's, or pass it by position"
        )
    if request.objective in TIMED:
        raise PartitionError(
            f"objective={request.objective!r} counts the time in which a request reads all state of a stage, and with "
            "sessions= it reads that of its own session alone; leave objective= out"
        )
    return replace(request, sessions=sessions)


def plan_for_sessions(captured: CapturedGraph, memory: GraphMemory, request: Request) -> Plan:
    """Return a plan in which the state of each session counts.

    Raises:
        PartitionError: as for `make_plan`; the message says that the state of all sessions counts.
    """
    try:
        return make_plan(captured, memory, request)
    except PartitionError as error:
        raise type(error)(f"{error} (the state of {request.sessions} sessions counts)") from error


def warn_if_beyond(plan: Plan) -> None:
    """Warn where a stage's weights and the state of all sessions exceed the budget that the user gave."""
    if not plan.has_given_budget or not plan.spill_bytes:
        return
    worst = max(plan.partitions, key=lambda partition: partition.spill_bytes)
    warnings.warn(
        f"stage {worst.index} exceeds its budget of {format_bytes(worst.budget_bytes)} by "
        f"{format_bytes(worst.spill_bytes)}: weights {format_bytes(worst.weight_bytes)}, the state of {plan.sessions} "
        f"sessions {format_bytes(worst.state_bytes)}; what is beyond is streamed from off-chip. Use fewer sessions, a "
        "larger cache_bytes or more devices",
        PartitionWarning,
        stacklevel=3,
    )
