"""Estimate the seconds of a call in microbatches, and of the whole batch, on one core of a server.

`timing.roofline` has the formula. The bytes that move come from `cache_traffic`. Page faults are added: malloc maps a
large result again in every call, with a fault for each page, which costs more than a cache saves. The constants are
round numbers; those that were measured are of an AMD EPYC VM of 2 cores, 512 KiB of L2 for each core and 32 MiB of L3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import sympy

from fx_partition.hardware.overheads import OVERHEADS

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Evaluator
from ..footprint.analyze import analyze_memory
from ..footprint.flops import flops_by_node
from ..footprint.graph_memory import GraphMemory
from ..inductor.fused_footprint import fuse
from ..plan.plan import Plan
from ..split.extract import planned_graph
from ..timing.roofline import Roofline
from .cache_traffic import Traffic

_OVERHEADS = OVERHEADS["cpu"]
#: One core: 30 GFLOP/s, and 25 GB/s from memory. Bytes from the cache take no time. Moving and computing overlap here,
#: though not in `OVERHEADS`: a batch worth cutting is large, and then the processor fetches ahead of its use. In small
#: batches the packing of operands shows. (With the sum, a MobileNetV2 of 32 rows would be cut, which was measured to
#: gain nothing.)
CORE = Roofline("one core", 30e9, math.inf, 25e9, lambda _: 0.0, _OVERHEADS.call, _OVERHEADS.kernel, overlap=True)
# glibc's malloc maps a block of this size or more if it has no free one as large, and unmaps it when it is freed; no
# setting makes it keep larger ones (half of HEAP_MAX_SIZE on 64 bits).
LARGE_BYTES = 32 << 20
# A fault for a page of 4 KiB takes 2.5 us (measured), and inductor reuses some half of the large buffers in a call.
FRESH_SECONDS_PER_BYTE = 2.5e-6 / 4096 / 2
# The gain that each partition must bring, as a share of the whole batch's time: costs are estimates, kernels are slower
# for few rows, and a boundary keeps inductor from fusing across it. (Attention that is cut between its two products
# took 1.67 times as long as whole, where inductor makes one kernel of it.)
LEAST_GAIN = 0.1
# And for other kernels than those of the trace: on one thread a 1x1 convolution is not oneDNN's below 16 rows, and a
# network of them took 1.25 times as long.
OTHER_KERNELS = 0.25


class Cost:
    """Estimates the costs of one graph, in seconds.

    Args:
        symbols: names of the batch's symbols.
        batch: the rows of the whole batch.
        fewest: the fewest rows for which the trace holds; below that, other kernels run.
        bind: numbers for other symbols, as a request has them.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        memory: GraphMemory,
        symbols: tuple[str, ...],
        batch: int,
        fewest: int,
        bind: Mapping[str, int] | None = None,
    ) -> None:
        self._captured, self._memory, self._symbols = captured, memory, symbols
        self._batch, self._fewest = batch, fewest
        self._bound = memory.symbols.bind(bind)
        self._traffic = Traffic(fuse(captured, memory.measured_at(self._bound))[0])
        flops = Evaluator(list(flops_by_node(captured, memory.symbols).values()))(self._numbers(batch))
        self._flops = sum(flops)

    def of(self, plan: Plan, rows: int) -> float:
        """Return the cost in microbatches of ``rows``, margin included; below `whole`, microbatches pay."""
        traffic = self._traffic
        if plan.slicings:
            planned = planned_graph(self._captured, plan)
            traffic = Traffic(fuse(planned, analyze_memory(planned).measured_at(self._bound))[0])
        parts = [partition.nodes for partition in plan.partitions]
        share = LEAST_GAIN * len(parts) + (OTHER_KERNELS if rows < self._fewest else 0)
        own = self._schedule(traffic, parts, rows, -(-self._batch // rows), plan.budget_bytes)
        return own + share * self.whole(plan.budget_bytes)

    def whole(self, cache: int) -> float:
        """Return the cost of the whole batch as one part, with ``cache`` bytes of cache."""
        nodes = tuple(step.node for step in self._memory.steps)
        return self._schedule(self._traffic, [nodes], self._batch, 1, cache)

    def _numbers(self, rows: int) -> dict[sympy.Symbol, int]:
        return {symbol: rows if symbol.name in self._symbols else size for symbol, size in self._bound.items()}

    def _schedule(
        self, traffic: Traffic, parts: list[tuple[str, ...]], rows: int, repeats: int, cache: int
    ) -> float:
        numbers = self._numbers(rows)
        moved = traffic.of(parts, numbers, repeats, cache)
        fresh = repeats * FRESH_SECONDS_PER_BYTE * traffic.large(numbers, LARGE_BYTES)
        calls, kernels = repeats * len(parts), repeats * sum(map(len, parts))
        return CORE.seconds(self._flops, 0, moved, kernels, 0) + (calls - 1) * CORE.call + fresh
