"""What a call costs in microbatches, and whole: bytes moved, and what calls take beside, in bytes of the same time.

The constants are those of one core of a present server, in round numbers: they weigh one cost against another, and no
result depends on a few per cent of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from .capture import Captured
from .facts import Facts
from .flops import flops_of
from .fusion import fuse
from .gather import gather_facts
from .plan import Plan
from .split import planned_graph
from .traffic import Traffic

# What one core reads from memory in a microsecond: 10 GB/s.
_BYTES_PER_US = 10_000
# A call of a stage from Python, with its checks and the slicing of its inputs (measured: 6 to 10 us).
CALL_BYTES = 10 * _BYTES_PER_US
# An operator of a stage: a kernel's call from inductor's wrapper, its result's allocation.
STEP_BYTES = 2 * _BYTES_PER_US
# Operations that one core does while it reads a byte: some 50 GFLOP/s over 10 GB/s.
FLOPS_PER_BYTE = 5
# What has to be gained for each partition, as a part of the whole batch's time: this is an estimate, kernels are slower
# for few rows, and a boundary keeps inductor from fusing across it. (Attention that is cut between its two products
# took 1.67 times as long as whole, where inductor makes one kernel of it.)
LEAST_GAIN = 0.1


class Cost:
    """Costs of one graph, in bytes.

    Args:
        symbols: names of the batch's symbols.
        batch: the rows of the whole batch.
        bind: numbers for other symbols, as a request has them.
    """

    def __init__(
        self,
        captured: Captured,
        facts: Facts,
        symbols: tuple[str, ...],
        batch: int,
        bind: Mapping[str, int] | None = None,
    ) -> None:
        self._captured, self._facts, self._symbols, self._batch = captured, facts, symbols, batch
        self._bound = facts.symbols.bind(bind)
        self._traffic = Traffic(fuse(captured, facts)[0])
        self._flops = flops_of(captured)

    def of(self, plan: Plan, rows: int) -> int:
        """In microbatches of so many rows, with what they have to gain: less than ``whole`` where they are worth it."""
        repeats = -(-self._batch // rows)
        traffic = self._traffic
        if plan.slicings:
            planned = planned_graph(self._captured, plan)
            traffic = Traffic(fuse(planned, gather_facts(planned))[0])
        parts = [partition.nodes for partition in plan.partitions]
        calls = CALL_BYTES * len(parts) + STEP_BYTES * sum(map(len, parts))
        moved = traffic.of(parts, self._numbers(rows), repeats, plan.budget_bytes)
        time = self.whole(plan.budget_bytes) + self._flops // FLOPS_PER_BYTE
        return moved + repeats * calls + int(LEAST_GAIN * len(parts) * time)

    def whole(self, cache: int) -> int:
        """With the batch whole, as one part."""
        nodes = [step.node for step in self._facts.steps]
        return self._traffic.of([nodes], self._numbers(self._batch), 1, cache) + CALL_BYTES + STEP_BYTES * len(nodes)

    def _numbers(self, rows: int) -> dict[sympy.Symbol, int]:
        return {symbol: rows if symbol.name in self._symbols else size for symbol, size in self._bound.items()}
