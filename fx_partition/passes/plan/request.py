"""What a caller may ask of the planner."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import shown
from fx_partition.hardware.device_names import parse_budget

from ..constraints.atoms import KeepTogether
from ..timing.device_speed import speed_of
from ..timing.roofline import Roofline

CacheBytes: TypeAlias = "int | str | Sequence[int | str]"
Devices: TypeAlias = "int | Sequence[str]"

#: Devices of a plan. Each is an entry of lists, and a graph has no more partitions than operators.
MOST_DEVICES = 1 << 16

# The budget that stands for none: nothing is cut, and there is nothing to trade off.
NO_BUDGET = sys.maxsize

ALGORITHMS = ("dp", "greedy")
OBJECTIVES = ("balanced", "traffic", "throughput", "latency")
TIMED = ("throughput", "latency")
ORDERS = ("search", "trace")
FOOTPRINTS = ("peak", "sum", "fused")
OVERSIZE = ("stream", "slice", "error")
ON_SHORTAGE = ("balance", "wrap", "error")


@dataclass(frozen=True)
class Request:
    """What a caller asks; every field is checked before any work is done.

    Attributes:
        budget: usable on-chip bytes of one device; None: the smallest for which ``count`` devices suffice.
        budgets: the bytes of each device in their order, where they are not all alike; then ``budget`` is the largest.
        devices: names of devices, in order; may be empty.
        count: how many devices there are; 0 for as many as are needed.
        algorithm: "dp" (exact) or "greedy" (sequential aggregation: the same number of partitions, larger maximum).
        objective: "balanced": fewest partitions, then the smallest maximum, then the fewest cut bytes; "traffic":
            fewest partitions, then the fewest cut bytes, then the smallest maximum. By the figures of a device that
            ``cache_bytes`` names, on as many devices as there are or, without a number, as few as hold the graph, in
            the order of the trace (see `time_objective`): "throughput": the shortest slowest partition or hop, then the
            latency; "latency": the shortest time of all partitions and hops one after another.
        max_slack: by what share of the smallest possible maximum the largest partition may exceed it to save cut bytes;
            None: 0 for "balanced", any for "traffic". It never exceeds the budget.
        order: "search": another topological order is taken if its plan is better; "trace": the order of the graph.
        footprint: "peak": what eager allocates; "sum": weight + activation + workspace of all layers, added up as
            if nothing were freed before the end (the paper's size); "fused": what the code that inductor compiles
            allocates. The last is exact only once the boundaries are known, so its plans come without a proof. Plans by
            "sum" and "fused" are in the order of the trace.
        oversize: what to do with an atom larger than the budget: "stream" (a partition of its own, the spill is
            reported), "slice" (a linear layer, matrix product, embedding or convolution in parts that fit; what cannot
            be sliced is streamed) or "error".
        keep_together: groups of nodes that must not be separated, by module path or by node names.
        bind: numbers for symbols, by name ("s0") or by input ("input_ids.0"); hints stand for the rest.
        on_shortage: with fewer devices than partitions, "balance" (as many partitions as devices, the spill is
            reported), "wrap" (partition i on device i mod D) or "error".
        replicate: whether devices that are left over take copies of the largest partitions.
        exactly: how many partitions there have to be, none empty; 0: as few as do. For runtimes whose stages are
            counted before, and no option of a user's.
        speed: of the devices, for a time objective; it comes with the name in ``cache_bytes``.
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
    oversize: str = "stream"
    keep_together: KeepTogether = ()
    bind: Mapping[str, int] | None = None
    on_shortage: str = "balance"
    replicate: bool = False
    exactly: int = 0
    speed: Roofline | None = None

    @property
    def slack(self) -> float:
        """``max_slack``, or what the objective says."""
        if self.max_slack is not None:
            return self.max_slack
        return math.inf if self.objective == "traffic" else 0.0

    def on_one_device(self) -> Request:
        """The same with the first device alone: one partition, whatever it spills."""
        return replace(self, devices=self.devices[:1], count=1, budgets=(), on_shortage="balance", replicate=False)

    @classmethod
    def options(cls) -> set[str]:
        """Names of what may be asked beside the budget and the devices."""
        return {field.name for field in fields(cls)} - {"budget", "budgets", "devices", "count", "exactly", "speed"}

    @classmethod
    def check(cls, cache_bytes: CacheBytes | None, devices: Devices | None = None, **options: Any) -> Request:
        """A request from a user's words.

        Args:
            cache_bytes: the bytes of one device, or of each in their order; None: the smallest for the ``devices``.
            devices: their number, or their names.
            options: the other attributes.

        Raises:
            PartitionError: a size that is none, or an option or a choice that does not exist or contradicts another; it
                names the way out.
        """
        unknown = set(options) - cls.options()
        if unknown:
            raise PartitionError(
                f"unknown option {', '.join(sorted(unknown))}; the options are {', '.join(sorted(cls.options()))}"
            )
        names, count = _devices(devices)
        budget, budgets = _budgets(cache_bytes, count)
        count = count or len(budgets)
        if len(set(budgets)) == 1:
            budgets = ()
        request = cls(budget, budgets, names, count, **options)
        _check_choices(request)
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


def _devices(devices: Devices | None) -> tuple[tuple[str, ...], int]:
    """Names, and how many."""
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
    """The budget of all devices (or the largest), and the list where they differ."""
    if cache_bytes is None:
        if not count:
            raise PartitionError(
                'say how large one device is (cache_bytes="6MiB"), or with devices= how many there are: then the '
                "smallest size that does is found"
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
    """The speed of the devices of a time objective."""
    for name, other in (("max_slack", None), ("footprint", "peak")):
        if getattr(request, name) != other:
            raise PartitionError(f"objective={request.objective!r} goes by time alone; leave {name}= out")
    if request.on_shortage == "wrap":
        raise PartitionError(
            f'objective={request.objective!r} places one partition a device; leave on_shortage="wrap" out: what is too '
            "much for the devices is weighed by the time that it takes"
        )
    if not (isinstance(cache_bytes, str) and cache_bytes.strip()[:1].isalpha()):
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
            f"max_slack={shown(slack)} is no share of the smallest maximum; 0.05 allows five percent more"
        )
