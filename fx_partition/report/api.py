"""The public functions of reports: `render` one plan, `report` on a plan or on a model with plans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fx_partition.common.units import format_bytes
from fx_partition.passes.plan.plan import Plan

from .compiled_plans import compiled_graphs
from .output import written
from .plan_document import contents


def render(plan: Plan, format: str = "text") -> str:
    """Return one plan as text.

    Args:
        plan: the plan.
        format: "text" for a terminal, "markdown", or "json": ``plan.to_json()``, which can be read back.

    Raises:
        ValueError: the format is unknown; the message lists the formats.

    Example::

        >>> print(render(plan))                                                # doctest: +SKIP
        >>> Plan.from_json(render(plan, "json")) == plan                       # doctest: +SKIP
    """
    return written(lambda: contents(plan), plan.to_json, format)


def report(x: Any, format: str = "text") -> str:
    """Return a report on the plans of ``x``: the devices, the contents of each, the parts that do not fit, and why.

    Args:
        x: a Plan; a module that ``fx_partition.split`` returned; or a model that was compiled with
            ``backend="l2partition"``, itself or the result of torch.compile. A compiled function has no parameters to
            find its graphs by, so the report has all compiled graphs.
        format: as for `render`. JSON of several graphs is ``{"graphs": [...], "weight_bytes": {device: bytes}}``.

    Raises:
        ValueError: the format is unknown, or the model has no plan; the message names the way out.
        TypeError: ``x`` is none of these.

    Example::

        >>> options = {"cache_bytes": "6MiB"}
        >>> compiled = torch.compile(model, backend="l2partition", options=options)    # doctest: +SKIP
        >>> compiled(x); print(fx_partition.report(compiled))                          # doctest: +SKIP
    """
    plan = x if isinstance(x, Plan) else getattr(x, "plan", None)
    if isinstance(plan, Plan):
        return render(plan, format)
    if not callable(x):
        raise TypeError(f"expected a Plan, a split module or a compiled model, not {type(x).__name__}")
    plans = [graph.plan for graph in compiled_graphs(x)]
    if not plans:
        raise ValueError(
            'there is no plan of this model: a model compiled with backend="l2partition" and '
            'options={"cache_bytes": "6MiB"} has one after its first call, so call it once; without cache_bytes '
            "it has none. To plan without compiling, use fx_partition.plan"
        )
    return render(plans[0], format) if len(plans) == 1 else _several(plans, format)


def _several(plans: Sequence[Plan], format: str) -> str:
    reports = [render(plan, format) for plan in plans]
    sums = _weights_by_device(plans)
    if format == "json":
        return json.dumps({"graphs": [plan.to_dict() for plan in plans], "weight_bytes": sums}, indent=1)
    mark, bullet = ("# ", "- ") if format == "markdown" else ("", "  ")
    parts = [f"{mark}Graph {i} of {len(plans)}\n\n{text}" for i, text in enumerate(reports, 1)]
    rows = "\n".join(f"{bullet}{device}: {format_bytes(size)}" for device, size in sums.items())
    lead = "A weight that several graphs read counts in each, so this is the most that it can be."
    return "\n\n".join([*parts, f"{mark}Weights over all {len(plans)} graphs\n\n{lead}\n\n{rows}"])


def _weights_by_device(plans: Sequence[Plan]) -> dict[str, int]:
    """Return the bytes of weights on each device over all plans; without named devices, partition i is on "stage i"."""
    sums: dict[str, int] = {}
    for partition in (partition for plan in plans for partition in plan.partitions):
        device = partition.device or f"stage {partition.index}"
        sums[device] = sums.get(device, 0) + partition.weight_bytes
    return sums
