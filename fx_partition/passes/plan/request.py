"""The planner's options, checked."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import shown
from fx_partition.hardware.device_names import is_device_name, parse_budget

from ..constraints.atoms import KeepTogether
from ..constraints.module_boundaries import NODES, read_boundaries
from ..timing.device_speed import speed_of
from ..timing.roofline import Roofline

CacheBytes: TypeAlias = "int | str | Sequence[int | str]"
Devices: TypeAlias = "int | Sequence[str]"

#: The most devices of a plan. Each is an entry of lists, and a graph has no more partitions than operators.
MOST_DEVICES = 1 << 16

# Stands for "no budget": nothing is cut, and there are no trade-offs.
NO_BUDGET = sys.maxsize

ALGORITHMS = ("dp", "greedy")
OBJECTIVES = ("balanced", "traffic", "throughput", "latency")
TIMED = ("throughput", "latency")
ORDERS = ("search", "trace")
FOOTPRINTS = ("peak", "sum", "fused")
ON_CHIP, DEVICE = "on-chip", "device"
MEMORIES = (ON_CHIP, DEVICE)
OVERSIZE = ("stream", "slice", "error")
ON_SHORTAGE = ("balance", "wrap", "error")


@dataclass(frozen=True)
class Request:
    """A caller's options; every field is checked before any work is done.

    Attributes:
        budget: usable bytes of one device; None: the smallest for which ``count`` devices suffice.
        budgets: the bytes of each device in their order, where they differ; then ``budget`` is the largest.
        devices: names of devices, in order; may be empty.
        count: the number of devices; 0 for as many as are needed.
        algorithm: "dp" (exact) or "greedy" (sequential aggregation: the same number of partitions, larger maximum).
        objective: "balanced": fewest partitions, then the smallest maximum, then the fewest cut bytes; "traffic":
            fewest partitions, then the fewest cut bytes, then the smallest maximum. The time objectives use the record
            of the device that ``cache_bytes`` names, all ``devices`` or, without a number, as few as hold the graph,
            and trace order (see `time_objective`): "throughput" minimises the time of the slowest partition or hop,
            then the latency; "latency" minimises the total time of all partitions and hops.
        max_slack: the share of the smallest possible maximum by which the largest partition may exceed it to save cut
            bytes; None: 0 for "balanced", any for "traffic". It never exceeds the budget.
        order: "search": use another topological order if its plan is better; "trace": the order of the graph.
        footprint: "peak": the memory that eager mode allocates; "sum": weight + activation + workspace of all layers,
            added up as if nothing were freed before the end (the paper's size); "fused": the memory that inductor's
            code allocates. The last is exact only once the boundaries are known, so its plans come without a proof.
            Plans with "sum" and "fused" are in trace order.
        memory: the memory that a budget is of: "on-chip": a gather counts the rows that it reads; "device": each
            partition holds all weights and all state that it is given, whole, from the start of a call to its end.
        boundaries: where boundaries may be, as `read_boundaries` returns it: between any "nodes" that may be separated,
            between "modules", or between modules of which some stay whole, by path or class.
        oversize: what to do with an atom larger than the budget: "stream" (give it a partition by itself and report the
            spill), "slice" (compute a linear layer, matrix product, embedding or convolution in parts that fit; stream
            other operators) or "error".
        keep_together: groups of nodes that must not be separated, by module path or by node names.
        bind: numbers for symbols, by name ("s0") or by input ("input_ids.0"); hints stand for the rest.
        on_shortage: with fewer devices than partitions, "balance" (make as many partitions as devices and report the
            spill), "wrap" (run partition i on device i mod D) or "error".
        replicate: whether devices that are left over hold copies of the largest partitions.
        exactly: the number of partitions, none empty; 0: as few as possible. For runtimes that know their number of
            stages in advance; users cannot set it.
        speed: the roofline of the devices, for a time objective; the name in ``cache_bytes`` decides it.
        sessions: how many copies of the written buffers there are, one for each session of a pipeline; `pipeline` sets
            it.
    """

    budget: int | None
    budgets: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    count: int = 0
    algorithm: str = "dp"
    objective: str = "balanced"
    max_slack: float | None = None
    order: str = "search"
    footprint: str = "peak"
    memory: str = ON_CHIP
    boundaries: str | tuple[str, ...] = NODES
    oversize: str = "stream"
    keep_together: KeepTogether = ()
    bind: Mapping[str, int] | None = None
    on_shortage: str = "balance"
    replicate: bool = False
    exactly: int = 0
    speed: Roofline | None = None
    sessions: int = 1

    @property
    def slack(self) -> float:
        """``max_slack``, or the objective's default."""
        if self.max_slack is not None:
            return self.max_slack
        return math.inf if self.objective == "traffic" else 0.0

    def on_one_device(self) -> Request:
        """Return the same request for the first device only: one partition, which may spill."""
        return replace(self, devices=self.devices[:1], count=1, budgets=(), on_shortage="balance", replicate=False)

    @classmethod
    def options(cls) -> set[str]:
        """Return the names of the options in addition to the budget and the devices."""
        internal = {"budget", "budgets", "devices", "count", "exactly", "speed", "sessions"}
        return {field.name for field in fields(cls)} - internal

    @classmethod
    def check(cls, cache_bytes: CacheBytes | None, devices: Devices | None = None, **options: Any) -> Request:
        """Return a request from a user's options.

        Args:
            cache_bytes: the bytes of one device, or of each in their order; None: the smallest for the ``devices``.
            devices: their number, or their names.
            options: the other attributes.

        Raises:
            PartitionError: a size cannot be read, or an option or a choice does not exist or contradicts another; the
                message names the way out.
        """
        unknown = set(options) - cls.options()
        if unknown:
            raise PartitionError(
                f"unknown option {', '.join(sorted(unknown))}; the options are {', '.join(sorted(cls.options()))}"
            )
        options["boundaries"] = read_boundaries(options.get("boundaries", NODES))
        names, count = _devices(devices)
        budget, budgets = _budgets(cache_bytes, count)
        count = count or len(budgets)
        if len(set(budgets)) == 1:
            budgets = ()
        request = cls(budget, budgets, names, count, **options)
        _check_choices(request)
        _check_memory(request, cache_bytes)
        if request.algorithm == "greedy" and (request.objective != "balanced" or request.max_slack is not None):
            raise PartitionError(
                'algorithm="greedy" fills one partition after another and follows no objective; leave objective= and '
                'max_slack= out, or use algorithm="dp"'
            )
        if request.objective in TIMED:
            request = replace(request, speed=_speed(request, cache_bytes))
        if request.replicate and not request.count:
            raise PartitionError("replicate=True needs devices to be left over: say with devices= how many there are")
        return request


def request_unless_planned(
    verb: str, plan: object, cache_bytes: CacheBytes | None, options: Mapping[str, Any]
) -> Request | None:
    """Return the checked request, or None where the caller gave a plan instead.

    Args:
        verb: the function that the caller called, for the message.

    Raises:
        PartitionError: there are both a plan and a budget or options; or as for `Request.check`.
    """
    if plan is None:
        return Request.check(cache_bytes, **options)
    if cache_bytes is not None or options:
        raise PartitionError(f"{verb} takes either cache_bytes= (with options) or plan=, a plan made before")
    return None


def _devices(devices: Devices | None) -> tuple[tuple[str, ...], int]:
    """Return the device names and their count."""
    if devices is None:
        return (), 0
    if isinstance(devices, int):
        if isinstance(devices, bool) or not 1 <= devices <= MOST_DEVICES:
            raise PartitionError(
                f"devices={shown(devices)} must be a number of devices, from 1 to {MOST_DEVICES}, or a list of names"
            )
        return (), devices
    names = tuple(devices)
    if len(names) > MOST_DEVICES:
        raise PartitionError(f"devices names {len(names)} devices, and a plan has at most {MOST_DEVICES}")
    return names, len(names)


def _budgets(cache_bytes: CacheBytes | None, count: int) -> tuple[int | None, tuple[int, ...]]:
    """Return the budget of all devices, or of the largest, and each device's budget if ``cache_bytes`` is a list."""
    if cache_bytes is None:
        if not count:
            raise PartitionError(
                'say how large one device is (cache_bytes="6MiB"), or with devices= how many there are: then the '
                "smallest size that suffices is found"
            )
        return None, ()
    if isinstance(cache_bytes, str) or not isinstance(cache_bytes, Sequence):
        return parse_budget(cache_bytes), ()
    if len(cache_bytes) > MOST_DEVICES:
        raise PartitionError(f"cache_bytes has {len(cache_bytes)} sizes, and a plan has at most {MOST_DEVICES} devices")
    budgets = tuple(map(parse_budget, cache_bytes))
    if not budgets:
        raise PartitionError("cache_bytes is an empty list; name the bytes of each device in their order")
    if count not in (0, len(budgets)):
        raise PartitionError(f"cache_bytes has the sizes of {len(budgets)} devices, and devices= says {count}")
    return max(budgets), budgets


def _speed(request: Request, cache_bytes: CacheBytes | None) -> Roofline:
    """Return the roofline of the devices of a time objective."""
    for name, other in (("max_slack", None), ("footprint", "peak"), ("memory", ON_CHIP)):
        if getattr(request, name) != other:
            raise PartitionError(f"objective={request.objective!r} minimises time alone; leave {name}= out")
    if request.on_shortage == "wrap":
        raise PartitionError(
            f'objective={request.objective!r} places one partition on each device; leave on_shortage="wrap" out: a '
            "partition too large for its device counts with the time that its spill takes"
        )
    if not isinstance(cache_bytes, str) or not is_device_name(cache_bytes):
        given = "no size" if cache_bytes in (None, NO_BUDGET) else repr(cache_bytes)
        raise PartitionError(
            f"objective={request.objective!r} needs to know how fast a device is: name it, as in "
            f'cache_bytes="H100-SXM"; {given} was given. `fx-partition devices` lists the names, "auto" is this '
            "machine's"
        )
    return speed_of(cache_bytes.strip())


def _check_choices(request: Request) -> None:
    choices = {
        "algorithm": ALGORITHMS,
        "objective": OBJECTIVES,
        "order": ORDERS,
        "footprint": FOOTPRINTS,
        "memory": MEMORIES,
        "oversize": OVERSIZE,
        "on_shortage": ON_SHORTAGE,
    }
    for name, known in choices.items():
        if getattr(request, name) not in known:
            raise PartitionError(f"{name}={getattr(request, name)!r} is not known; choose from {', '.join(known)}")
    slack = request.max_slack
    is_share = isinstance(slack, (int, float)) and (0 <= slack <= sys.float_info.max or slack == math.inf)
    if slack is not None and not is_share:
        raise PartitionError(
            f"max_slack={shown(slack)} is not a share of the smallest maximum; 0.05 allows five percent more"
        )


def _check_memory(request: Request, cache_bytes: CacheBytes | None) -> None:
    """Raise an error where ``memory`` or ``boundaries`` contradicts another option."""
    if request.memory == DEVICE:
        sizes = [cache_bytes] if isinstance(cache_bytes, (str, int)) else cache_bytes or ()
        if named := [size for size in sizes if is_device_name(size)]:
            raise PartitionError(
                f'memory="device" needs the bytes of a device, as in cache_bytes="80GiB"; the name {shown(named[0])} '
                "stands for its on-chip bytes"
            )
    if request.oversize == "slice" and (request.memory == DEVICE or request.boundaries != NODES):
        reason = (
            'memory="device" counts the weight of a slice whole' if request.memory == DEVICE
            else "boundaries= keeps modules whole, and so their slices in one partition"
        )  # fmt: skip
        raise PartitionError(f'oversize="slice" makes parts for several partitions, and {reason}; leave one out')
