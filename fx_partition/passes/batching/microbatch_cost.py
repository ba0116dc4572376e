"""What a call costs in microbatches, and whole, in bytes: those that it moves, and others that take as long to move.

Moving and computing overlap, so the longer of the two counts (a roofline). To that are added what calls take, and fresh
memory: a large result is mapped anew by every call, and each of its pages is a fault, which costs more than a cache
saves. The constants are round numbers for one core of a server; where they come from measurements these are of an AMD
EPYC VM of 2 cores, 512 KiB of L2 a core and 32 MiB of L3.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from ..capture.capture_model import CapturedGraph
from ..capture.symbolic_sizes import Evaluator
from ..footprint.analyze import gather_facts
from ..footprint.flops import flops_by_node
from ..footprint.graph_memory import GraphMemory
from ..inductor.fused_footprint import fuse
from ..plan.plan import Plan
from ..split.extract import planned_graph
from .cache_traffic import Traffic

# What one core reads from memory in a microsecond, ahead of its use: 25 GB/s.
_BYTES_PER_US = 25_000
# A call of a stage from Python, with its checks and the slicing of its inputs (measured: 6 to 10 us).
CALL_BYTES = 10 * _BYTES_PER_US
# An operator of a stage: a kernel's call from inductor's wrapper, its result's allocation.
STEP_BYTES = 2 * _BYTES_PER_US
# Operations that one core does while it reads a byte: 30 GFLOP/s over 25 GB/s.
FLOPS_PER_BYTE = 1.2
# glibc's malloc maps a block of this size or more anew, if it has no free one as large, and unmaps it when it is freed;
# no setting makes it keep larger ones (half of HEAP_MAX_SIZE on 64 bits).
LARGE_BYTES = 32 << 20
# A fault for a page of 4 KiB takes 2.5 us (measured), and inductor reuses some half of the large buffers in a call.
FRESH_FACTOR = 8
# What has to be gained for each partition, as a part of the whole batch's time: this is an estimate, kernels are slower
# for few rows, and a boundary keeps inductor from fusing across it. (Attention that is cut between its two products
# took 1.67 times as long as whole, where inductor makes one kernel of it.)
LEAST_GAIN = 0.1
# And for other kernels than those of the trace: on one thread a 1x1 convolution is not oneDNN's below 16 rows, and a
# network of them took 1.25 times as long.
OTHER_KERNELS = 0.25


class Cost:
    """Costs of one graph, in bytes.

    Args:
        symbols: names of the batch's symbols.
        batch: the rows of the whole batch.
        fewest: the fewest rows for which the trace holds: with fewer, kernels are others.
        bind: numbers for other symbols, as a request has them.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        facts: GraphMemory,
        symbols: tuple[str, ...],
        batch: int,
        fewest: int,
        bind: Mapping[str, int] | None = None,
    ) -> None:
        self._captured, self._facts, self._symbols = captured, facts, symbols
        self._batch, self._fewest = batch, fewest
        self._bound = facts.symbols.bind(bind)
        self._traffic = Traffic(fuse(captured, facts.measured_at(self._bound))[0])
        flops = Evaluator(list(flops_by_node(captured, facts.symbols).values()))(self._numbers(batch))
        self._computing = int(sum(flops) / FLOPS_PER_BYTE)

    def of(self, plan: Plan, rows: int) -> int:
        """In microbatches of so many rows, with what they have to gain: less than ``whole`` where they are worth it."""
        traffic = self._traffic
        if plan.slicings:
            planned = planned_graph(self._captured, plan)
            traffic = Traffic(fuse(planned, gather_facts(planned).measured_at(self._bound))[0])
        parts = [partition.nodes for partition in plan.partitions]
        share = LEAST_GAIN * len(parts) + (OTHER_KERNELS if rows < self._fewest else 0)
        own = self._schedule(traffic, parts, rows, -(-self._batch // rows), plan.budget_bytes)
        return own + int(share * self.whole(plan.budget_bytes))

    def whole(self, cache: int) -> int:
        """With the batch whole, as one part."""
        nodes = tuple(step.node for step in self._facts.steps)
        return self._schedule(self._traffic, [nodes], self._batch, 1, cache)

    def _numbers(self, rows: int) -> dict[sympy.Symbol, int]:
        return {symbol: rows if symbol.name in self._symbols else size for symbol, size in self._bound.items()}

    def _schedule(self, traffic: Traffic, parts: list[tuple[str, ...]], rows: int, repeats: int, cache: int) -> int:
        numbers = self._numbers(rows)
        moved = max(traffic.of(parts, numbers, repeats, cache), self._computing)
        fresh = FRESH_FACTOR * traffic.large(numbers, LARGE_BYTES)
        calls = CALL_BYTES * len(parts) + STEP_BYTES * sum(map(len, parts))
        return moved + repeats * (fresh + calls)
