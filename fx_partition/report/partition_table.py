"""Make the table of partitions: the bytes that each holds, the rest of its device, the bytes across its boundaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fx_partition.common.units import format_bytes
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.records import Partition
from fx_partition.passes.plan.request import DEVICE

from .document import Table, code
from .headline import percent


class _Column(NamedTuple):
    header: str
    numeric: bool
    cell: Callable[[Partition], str]
    total: str


def partition_table(plan: Plan) -> Table:
    """Return a table with a row for each partition and a row of totals; bytes in binary units.

    Empty columns are left out: devices where none were named, state where nothing is written, and figures that depend
    on the budget where there is none.
    """

    def left(partition: Partition) -> int:
        return max(0, partition.budget_bytes - partition.total_bytes)

    def size(header: str, of: Callable[[Partition], int]) -> _Column:
        return _Column(header, True, lambda p: format_bytes(of(p)), format_bytes(sum(map(of, plan.partitions))))

    columns = [_Column("#", True, lambda p: str(p.index), "")]
    if any(p.device for p in plan.partitions):
        columns.append(_Column("device", False, lambda p: p.device, ""))
    if plan.device_budgets:
        columns.append(_Column("place", True, lambda p: str(p.slot % plan.num_devices), ""))
        columns.append(size("budget", lambda p: p.budget_bytes))
    if any(p.replicas for p in plan.partitions):
        columns.append(_Column("copies on", False, _copies(plan), ""))
    columns.append(_Column("first", False, lambda p: code(p.first), "total"))
    columns.append(_Column("last", False, lambda p: code(p.last), ""))
    columns.append(size("weights", lambda p: p.weight_bytes))
    if any(p.state_bytes for p in plan.partitions):
        columns.append(size("state", lambda p: p.state_bytes))
    columns.append(size("activations", lambda p: p.activation_bytes))
    columns.append(size("workspace", lambda p: p.workspace_bytes))
    if any(p.allocated_bytes is not None for p in plan.partitions):
        columns.append(size("allocates (planned)", lambda p: p.own_bytes))
        columns.append(_Column("allocates (compiled)", True, _allocated, ""))
    columns.append(size("total", lambda p: p.total_bytes))
    if plan.has_budget:
        used = percent(sum(p.total_bytes for p in plan.partitions), sum(p.budget_bytes for p in plan.partitions))
        columns.append(_Column("of budget", True, lambda p: percent(p.total_bytes, p.budget_bytes), used))
        on_device = plan.memory == DEVICE
        columns.append(size("left" if on_device else "left on chip", left))
        columns.append(size("over" if on_device else "spilled (streamed off-chip)", lambda p: p.spill_bytes))
    columns.append(size("received", lambda p: p.recv_bytes))
    columns.append(size("sent", lambda p: p.send_bytes))
    return Table(
        headers=tuple(column.header for column in columns),
        numeric=tuple(column.numeric for column in columns),
        rows=tuple(tuple(column.cell(p) for column in columns) for p in plan.partitions),
        totals=tuple(column.total for column in columns),
    )


def _copies(plan: Plan) -> Callable[[Partition], str]:
    """Return a function to the devices with copies of a partition: their names, or their numbers."""
    return lambda p: ", ".join(plan.devices[d] if plan.devices else str(d) for d in p.replicas)


def _allocated(partition: Partition) -> str:
    return "not measured" if partition.allocated_bytes is None else format_bytes(partition.allocated_bytes)
