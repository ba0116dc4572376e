"""The two verbs that need no runtime: `plan` a model, `split` a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .atoms import KeepTogether
from .capture import ExampleInputs, Model, capture
from .check_order import check_order
from .errors import PartitionError
from .gather import gather_facts
from .plan import Plan
from .planning import make_plan
from .request import CacheBytes, Devices, Request
from .split import planned_graph, split_graph, split_planned
from .split_module import SplitModule


def plan(
    model: Model,
    cache_bytes: CacheBytes | None = None,
    *,
    example_inputs: ExampleInputs | None = None,
    dynamic_shapes: Any = None,
    bind: Mapping[str, int] | None = None,
    algorithm: str = "dp",
    objective: str = "balanced",
    max_slack: float | None = None,
    order: str = "search",
    footprint: str = "peak",
    oversize: str = "stream",
    keep_together: KeepTogether = (),
    devices: Devices | None = None,
    on_shortage: str = "balance",
    replicate: bool = False,
) -> Plan:
    """Say where a model would be cut so that every partition fits ``cache_bytes``; nothing is cut or compiled.

    Args:
        model: a GraphModule, an ExportedProgram, or an nn.Module (traced by torch.export).
        cache_bytes: usable on-chip bytes of one device: 6291456, "6MiB", "6MB", the name of a device ("H100-SXM"), or
            "auto" for that of this machine; or a list, of each device in their order. Left out, with ``devices``: the
            smallest size of which so many devices suffice.
        example_inputs: a sequence of positional inputs, one tensor, or a mapping of keyword inputs; needed for an
            nn.Module and for a graph without shapes.
        dynamic_shapes: which dimensions of the inputs are symbolic, as for ``torch.export.export``.
        bind: numbers for symbolic dimensions, by input (``{"input_ids.0": 8}``) or symbol; hints stand for the rest.
        devices: how many devices there are, or their names in order.
        algorithm, objective, max_slack, order, footprint, oversize, keep_together, on_shortage, replicate: see
            `request.Request`.

    Raises:
        PartitionError (a ValueError): what cannot be planned, with the way out.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> fx_partition.plan(model, "1MiB", example_inputs=torch.randn(4, 256)).num_partitions
        3
        >>> fx_partition.plan(model, devices=2, example_inputs=torch.randn(4, 256)).budget_bytes
        1060864
    """
    request = Request.check(
        cache_bytes, devices, bind=bind, algorithm=algorithm, objective=objective, max_slack=max_slack,
        order=order, footprint=footprint, oversize=oversize, keep_together=keep_together, on_shortage=on_shortage,
        replicate=replicate,
    )  # fmt: skip
    captured = capture(model, example_inputs, dynamic_shapes)
    return make_plan(captured, gather_facts(captured), request)


def split(
    model: Model,
    cache_bytes: CacheBytes | None = None,
    *,
    plan: Plan | None = None,
    example_inputs: ExampleInputs | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> SplitModule:
    """Cut a model into ``partition_0 .. partition_{k-1}``, each within ``cache_bytes``; equal to the model bit by bit.

    Args:
        model, cache_bytes, example_inputs, dynamic_shapes, options: as for `plan`.
        plan: a plan made before for the same graph, instead of ``cache_bytes`` and options. It may have been edited:
            one that would run nodes twice, never or too early is refused.

    Returns:
        A GraphModule called like the model, with ``.plan``. It shares parameters and buffers with the model, and its
        ``state_dict()`` has the model's keys.

    Raises:
        PartitionError (a ValueError): what cannot be planned or cut, with the way out.
        PlanMismatchError (a PartitionError): ``plan`` was made for another graph, or cannot run this one.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> x = torch.randn(4, 256)
        >>> cut = fx_partition.split(model, "1MiB", example_inputs=x)
        >>> torch.equal(cut(x), model(x)), cut.plan.num_partitions
        (True, 3)
    """
    if plan is not None and (cache_bytes is not None or options):
        raise PartitionError("split takes either cache_bytes= (with options) or plan=, a plan made before")
    request = Request.check(cache_bytes, **options) if plan is None else None
    captured = capture(model, example_inputs, dynamic_shapes)
    if plan is None:
        assert request is not None
        return split_graph(captured, make_plan(captured, gather_facts(captured), request))
    planned = planned_graph(captured, plan)
    check_order(planned, plan)
    return split_planned(planned, plan)
