"""Graphs that run whole, as inductor alone would run them, since they could not be cut; none of it goes by unseen.

Each is told to the caller by a PartitionWarning, counted in `FALLBACKS`, logged by the logger ``fx_partition`` with
the error's traceback, and shown by the report of its model.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import replace

from fx_partition.common.errors import PartitionWarning
from fx_partition.passes.capture.capture_model import CapturedGraph
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.make_plan import make_plan, plan_without_partitions
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request

_LOG = logging.getLogger("fx_partition")

# How often graphs of this process ran whole, by the kind of error.
FALLBACKS: Counter[str] = Counter()


def tell(reason: str, error: Exception) -> None:
    """Say that a graph runs as one partition.

    Args:
        reason: why, in words that follow "as".
        error: what was raised.
    """
    FALLBACKS[type(error).__name__] += 1
    text = f"this graph runs as one partition, as {reason}"
    _LOG.info("%s", text, exc_info=error)
    warnings.warn(text, PartitionWarning, stacklevel=2)


def first_line(error: Exception) -> str:
    """What an error says first, behind a colon; the rest, a compiler's output for one, is in the log."""
    lines = str(error).strip().splitlines()
    return f": {lines[0]}" if lines else ""


def whole_plan(
    reason: str, graph: str, captured: CapturedGraph | None, facts: GraphMemory | None, request: Request
) -> Plan:
    """The plan of a graph that runs whole: one partition with its footprint, none where that is not known.

    Args:
        reason: why, in words that follow "as".
        graph: the graph's fingerprint.
        captured, facts: what analysis has found of it, as far as it came.
        request: what was asked for.
    """
    note = f"The graph runs as one partition, as {reason}."
    request = replace(request, devices=(), count=1, budgets=(), replicate=False, exactly=0, oversize="stream")
    if captured is not None and facts is not None:
        try:
            return replace(make_plan(captured, facts, replace(request, on_shortage="balance")), note=note)
        except Exception as error:  # planning may be what failed
            _LOG.info("no footprint of a graph that runs whole", exc_info=error)
    return plan_without_partitions(graph, request, note)
