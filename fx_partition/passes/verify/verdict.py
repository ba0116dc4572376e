"""What follows from faults: a plan that cannot run is refused, and of one that runs with wrong figures is warned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from fx_partition.common.errors import PartitionWarning, PlanMismatchError

from ..capture.captured_graph import CapturedGraph
from ..plan.plan import Plan
from .case import Fault
from .reading import read_graph
from .structure import running_faults

# A message names so many reasons; the rest are counted.
SHOWN = 3


def check_order(planned: CapturedGraph, plan: Plan) -> None:
    """Raise an error unless a plan can run a graph, whatever its figures say.

    Args:
        planned: the graph that the plan cuts (`extract.planned_graph`).
        plan: a plan that was not made from this graph in the same call.

    Raises:
        PlanMismatchError: it names the nodes, and says why.
    """
    refuse_or_warn(running_faults(read_graph(planned), plan))


def refuse_or_warn(faults: Sequence[Fault]) -> None:
    """Raise an error if faults say that a plan cannot run its graph, and warn of others.

    Raises:
        PlanMismatchError: it names the nodes, and says why.
    """
    if any(fault.cannot_run for fault in faults):
        raise PlanMismatchError(
            f"this plan cannot run this graph: {_named(faults)}. Was it edited? "
            "Make one with fx_partition.plan(...)"
        )
    if faults:
        warnings.warn(
            f"this plan runs this graph, but what it says does not hold: {_named(faults)}. Was it edited, or made on "
            "another processor? Make one with fx_partition.plan(...)",
            PartitionWarning,
            stacklevel=3,
        )


def _named(faults: Sequence[Fault]) -> str:
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(map(str, faults[:SHOWN])) + more
