"""The public functions that need no runtime: `plan` a model, `split` a model, `verify` a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .capture.capture_model import ExampleInputs, Model, capture
from .constraints.atoms import KeepTogether
from .constraints.module_boundaries import Boundaries
from .footprint.analyze import analyze_memory
from .plan.make_plan import make_plan
from .plan.plan import Plan
from .plan.request import CacheBytes, Devices, Request, request_unless_planned
from .split.extract import planned_graph, split_graph, split_planned
from .split.split_module import SplitModule
from .verify.check import find_faults
from .verify.verdict import refuse_or_warn


def plan(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    cache_bytes: CacheBytes | None = None,
    dynamic_shapes: Any = None,
    bind: Mapping[str, int] | None = None,
    algorithm: str = "dp",
    objective: str = "balanced",
    max_slack: float | None = None,
    order: str = "search",
    footprint: str = "peak",
    memory: str = "on-chip",
    boundaries: Boundaries = "nodes",
    oversize: str = "stream",
    keep_together: KeepTogether = (),
    devices: Devices | None = None,
    on_shortage: str = "balance",
    replicate: bool = False,
) -> Plan:
    """Return a plan that cuts a model so that every partition fits ``cache_bytes``; nothing is cut or compiled.

    Args:
        model: a GraphModule, an ExportedProgram, or an nn.Module (traced by torch.export).
        example_inputs: a sequence of positional inputs, one tensor, or a mapping of keyword inputs; needed for an
            nn.Module and for a graph without shapes.
        cache_bytes: usable bytes of one device: 6291456, "6MiB", "6MB", the name of a device ("H100-SXM"), or
            "auto" for this machine's device; or a list with the bytes of each device in order. Left out, with
            ``devices``: the smallest size for which that number of devices suffices.
        dynamic_shapes: the symbolic dimensions of the inputs, as for ``torch.export.export``.
        bind: numbers for symbolic dimensions, by input (``{"input_ids.0": 8}``) or symbol; hints stand for the rest.
        devices: the number of devices, or their names in order.
        memory: "on-chip", or "device": each partition holds its weights whole, whole embedding tables too, and its
            state, from the start of a call to its end.
        boundaries: where boundaries may be: between "nodes", between "modules" (a module of a list, such as a decoder
            layer, stays whole), or between modules of which those of a list stay whole: classes, their names, or paths.
        algorithm, objective, max_slack, order, footprint, oversize, keep_together, on_shortage, replicate: see
            docs/options.md.

    Raises:
        PartitionError (a ValueError): the model cannot be planned; the message names the reason and the way out.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> fx_partition.plan(model, torch.randn(4, 256), cache_bytes="1MiB").num_partitions
        3
        >>> fx_partition.plan(model, torch.randn(4, 256), devices=2).budget_bytes
        1060864
        >>> fx_partition.plan(model, torch.randn(4, 256), cache_bytes="1MiB", boundaries=["3"]).num_partitions
        3
    """
    request = Request.check(
        cache_bytes, devices, bind=bind, algorithm=algorithm, objective=objective, max_slack=max_slack,
        order=order, footprint=footprint, memory=memory, boundaries=boundaries, oversize=oversize,
        keep_together=keep_together, on_shortage=on_shortage, replicate=replicate,
    )  # fmt: skip
    captured = capture(model, example_inputs, dynamic_shapes)
    return make_plan(captured, analyze_memory(captured), request)


def split(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    cache_bytes: CacheBytes | None = None,
    plan: Plan | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> SplitModule:
    """Cut a model into ``partition_0 .. partition_{k-1}``, each within ``cache_bytes``; results are equal bit by bit.

    Args:
        model, example_inputs, cache_bytes, dynamic_shapes, options: as for `plan`.
        plan: a plan made before for the same graph, instead of ``cache_bytes`` and options. It may have been edited,
            so it is checked like by `verify`. A plan that would run nodes twice, never or too early raises an error. A
            plan that runs but has wrong figures (another processor needs other scratch memory) gets a warning.

    Returns:
        A GraphModule to call like the model, with ``.plan``. It shares parameters and buffers with the model, and its
        ``state_dict()`` has the model's keys. The first call with sizes beyond those for which the plan fits gets a
        PartitionWarning.

    Raises:
        PartitionError (a ValueError): the model cannot be planned or cut; the message names the reason and the way out.
        PlanMismatchError (a PartitionError): ``plan`` was made for another graph, or cannot run this one.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> x = torch.randn(4, 256)
        >>> cut = fx_partition.split(model, x, cache_bytes="1MiB")
        >>> torch.equal(cut(x), model(x)), cut.plan.num_partitions
        (True, 3)
    """
    request = request_unless_planned("split", plan, cache_bytes, options)
    captured = capture(model, example_inputs, dynamic_shapes)
    if plan is None:
        assert request is not None
        return split_graph(captured, make_plan(captured, analyze_memory(captured), request))
    planned = planned_graph(captured, plan)
    refuse_or_warn(find_faults(captured, plan))
    return split_planned(planned, plan)


def verify(
    plan: Plan, model: Model, example_inputs: ExampleInputs | None = None, dynamic_shapes: Any = None
) -> list[str]:
    """Check a plan against its model, and return its faults: an empty list if everything in it is right.

    The order, the footprints, the values that cross boundaries, symbolic sizes, budgets, trade-offs, bounds and their
    witnesses, and the claims of an exhaustive search are computed again; `passes.verify` says what it shares with the
    planner. Fields that no other field depends on are not checked: ``note``, the reason why an operator was not sliced,
    the sizes of the trace (the bindings count), the results of a compiled run (``allocated_bytes``, ``code``), and the
    number of orders that a search tried if it was not exhaustive.

    Args:
        plan: any plan, even an edited one.
        model, example_inputs, dynamic_shapes: as for `plan`; scratch memory that depends on the processor is measured
            on this machine.

    Returns:
        Faults as ``path: why``, with the path of a field in the plan's JSON and sizes in bytes::

            partitions[1].recv_bytes: it is 0, and by footprint=peak, memory=on-chip the model has 4096

    Raises:
        PartitionError (a ValueError): the model cannot be captured, as for `plan`.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> x = torch.randn(4, 256)
        >>> made = fx_partition.plan(model, x, cache_bytes="1MiB")
        >>> fx_partition.verify(made, model, x)
        []
        >>> import dataclasses
        >>> fx_partition.verify(dataclasses.replace(made, budget_bytes=5), model, x)[0]
        'partitions[0].budget_bytes: it is 1048576, and for partitions[0].slot = 0 budget_bytes is 5'
    """
    return [str(fault) for fault in find_faults(capture(model, example_inputs, dynamic_shapes), plan)]
