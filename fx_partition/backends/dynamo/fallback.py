"""Fallbacks: graphs that run as one partition, as inductor alone would run them, because another way failed.

A fallback is never silent: the caller gets a PartitionWarning, `FALLBACKS` counts it, the logger ``fx_partition`` has
the traceback of the error, and the report of the model shows the reason.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import replace

import torch.fx

from fx_partition.common.errors import PartitionWarning, UnreadableError
from fx_partition.passes.capture.graph_hash import fingerprint
from fx_partition.passes.plan.make_plan import make_plan, plan_without_partitions
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request

from ..lowering.graph_context import GraphContext

_LOG = logging.getLogger("fx_partition")

#: How often graphs of this process fell back, by the class of the error.
FALLBACKS: Counter[str] = Counter()


def plan_as_one_partition(
    error: Exception, graph: torch.fx.Graph, context: GraphContext | None, plan: Plan | None, request: Request
) -> Plan:
    """Plan a graph as one partition because of an error, and say so.

    Args:
        error: the error that was raised while the graph was planned or compiled in partitions.
        context: None where the graph could not be analysed.
        plan: the plan whose partitions could not be compiled; None where the graph could not be planned.

    Returns:
        A plan of one partition with its footprint, or of none where the footprint is not known.
    """
    reason = _reason(error, plan)
    _tell(reason, error)
    note = f"The graph runs as one partition, as {reason}."
    request = replace(request, devices=(), count=1, budgets=(), replicate=False, exactly=0, oversize="stream")
    if context is not None:
        try:
            one = make_plan(context.captured, context.memory, replace(request, on_shortage="balance"))
            return replace(one, note=note)
        except Exception as again:  # planning itself may have failed before
            _LOG.info("a graph that runs as one partition has no footprint", exc_info=again)
    return plan_without_partitions(fingerprint(graph), request, note)


def _reason(error: Exception, plan: Plan | None) -> str:
    """Return the reason of a fallback, in words that follow "as"."""
    if isinstance(error, UnreadableError):
        return str(error)
    failed = f"its {plan.num_partitions} partitions could not be compiled apart" if plan else "it could not be planned"
    return f"{failed}: {type(error).__name__}{_first_line(error)}"


def _first_line(error: Exception) -> str:
    """Return the first line of an error behind a colon; the rest, often a compiler's output, is in the log."""
    lines = str(error).strip().splitlines()
    return f": {lines[0]}" if lines else ""


def _tell(reason: str, error: Exception) -> None:
    FALLBACKS[type(error).__name__] += 1
    text = f"this graph runs as one partition, as {reason}"
    _LOG.info("%s", text, exc_info=error)
    warnings.warn(text, PartitionWarning, stacklevel=3)
