"""Choose the size of microbatches, and cut a batch into them.

Terms
-----
microbatch
    Some rows of a batch, which run through the graph together. The sizes of the microbatches of a batch differ by one
    at most, as those of ``torch.tensor_split`` do.
cost
    The estimated seconds of a call, for a number of rows and a plan for them (see `microbatch_cost`). Few rows make
    small buffers, which stay in the cache and in the process, but need many calls; many rows do the opposite.

Example: each of eight layers of 64 features and 131,072 rows returns 32 MiB, for which a call takes new pages from the
kernel. In eight microbatches it takes none.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import least_of, shape_env_of
from ..capture.symbolic_sizes import evaluate
from ..footprint.graph_memory import GraphMemory
from ..plan.make_plan import make_plan
from ..plan.plan import Plan
from ..plan.request import Request
from .microbatch_cost import Cost

#: The fewest rows of a microbatch: tracers and compilers specialise on a size of one.
FEWEST = 2


def even_sizes(batch: int, count: int) -> tuple[int, ...]:
    """Return the sizes of ``count`` microbatches, the larger ones first.

    Example::

        >>> even_sizes(8, 3)
        (3, 3, 2)
    """
    return tuple(batch // count + (i < batch % count) for i in range(count))


def plan_microbatches(
    captured: CapturedGraph, memory: GraphMemory, request: Request, symbols: tuple[str, ...], microbatches: int | None
) -> tuple[Plan, int] | None:
    """Return the plan for microbatches and the rows of the largest one; None if the whole batch costs less.

    Args:
        symbols: names of the batch's symbols; if there are several, they are assumed to be equal.
        microbatches: the number of microbatches; None: the number of the least cost (`cheapest`).
    """
    batch = _batch(memory, request, symbols[0])
    plan = functools.partial(_plan, captured, memory, request, symbols)
    if microbatches is not None:
        rows = max(FEWEST, -(-batch // microbatches))
        return plan(rows), rows
    cost = Cost(captured, memory, symbols, batch, _fewest(captured, symbols), request.bind)
    uncut = functools.partial(_plan, captured, memory, request.on_one_device(), symbols)
    found = cheapest((plan, uncut), cost.of, symbols[0], batch)
    return found if found and cost.of(*found) < cost.whole(found[0].budget_bytes) else None


def _fewest(captured: CapturedGraph, symbols: tuple[str, ...]) -> int:
    """Return the fewest rows for which the trace holds."""
    env = shape_env_of(captured.values.values())
    assert env is not None  # a trace with fewer rows would have no symbol for the batch
    return max(FEWEST, *(least_of(env, symbol) for symbol in env.var_to_range if symbol.name in symbols))


def _batch(memory: GraphMemory, request: Request, symbol: str) -> int:
    (size,) = (s for s in memory.symbols.hints if s.name == symbol)
    return evaluate(size, memory.symbols.bind(request.bind))


def _plan(captured: CapturedGraph, memory: GraphMemory, request: Request, symbols: tuple[str, ...], rows: int) -> Plan:
    names = {name for name, symbol in memory.symbols.dims.items() if symbol.name in symbols}
    bind = {name: size for name, size in (request.bind or {}).items() if name not in names}
    return make_plan(captured, memory, replace(request, bind={**bind, **dict.fromkeys(symbols, rows)}))


def cheapest(
    planners: Sequence[Callable[[int], Plan]], cost: Callable[[Plan, int], float], symbol: str, batch: int
) -> tuple[Plan, int] | None:
    """Return the plan and the rows of the least cost; None if the batch is too small to cut.

    It tries powers of two as rows, the largest first, and for each plan the most rows for which the plan still fits,
    spread evenly. Of equal costs the first one tried counts.

    Args:
        planners: each makes a plan for a number of rows.
        cost: returns the cost of a call with a plan for a number of rows.
        symbol: the batch's symbol in the plan.
        batch: the rows of the whole batch.
    """
    found: dict[tuple[int, int], Plan] = {}
    for number, plan in enumerate(planners):
        rows = 1 << (batch - 1).bit_length() - 1
        while rows >= FEWEST:
            if (number, rows) not in found:
                found[number, rows] = plan(rows)
            fits = min(found[number, rows].largest(symbol), batch - 1)
            even = -(-batch // -(-batch // fits)) if fits >= FEWEST else rows
            if (number, even) not in found:
                found[number, even] = plan(even)
            rows //= 2
    if not found:
        return None
    (number, rows), best = min(found.items(), key=lambda item: cost(item[1], item[0][1]))
    return best, rows


class BatchSplitter:
    """Cuts a batch into blocks of rows; it remembers the result for sizes that it has seen.

    Args:
        symbols: the symbols of the graph's size inputs, in their order.
        batch: the batch's symbol, and the symbols that are assumed to be equal to it.
        count: the number of microbatches; None: as many as ``rows`` needs.
        rows: the rows of the largest microbatch.
        guards: assumptions of the compiled stages on sizes. A microbatch must satisfy them, else the batch is cut into
            fewer microbatches (down to the whole batch), then into more.

    Example::

        >>> s = sympy.Symbol("s", positive=True, integer=True)
        >>> cut = BatchSplitter((s,), (s,), 3, 4, [sympy.Ge(s, 2)])
        >>> cut(8), cut(5), cut(3), cut(1)
        (((0, 3), (3, 3), (6, 2)), ((0, 3), (3, 2)), ((0, 3),), ())
    """

    def __init__(
        self,
        symbols: tuple[sympy.Symbol, ...],
        batch: tuple[sympy.Symbol, ...],
        count: int | None,
        rows: int,
        guards: Sequence[sympy.Basic],
    ) -> None:
        self._symbols, self._batch, self._count, self._rows = symbols, batch, count, rows
        self._guards = list(guards)
        self._call = functools.lru_cache(maxsize=1024)(self._cut)

    def __call__(self, *sizes: int) -> tuple[tuple[int, int], ...]:
        """Return (first row, rows) of each microbatch for ``sizes`` of the symbols; empty if no cut fits."""
        return self._call(*sizes)

    def _cut(self, *sizes: int) -> tuple[tuple[int, int], ...]:
        values = dict(zip(self._symbols, sizes, strict=True))
        batches = {values[symbol] for symbol in self._batch}
        if len(batches) > 1:
            return ()
        (batch,) = batches
        admits = functools.cache(functools.partial(self._admits, values))
        wanted = min(batch, self._count or -(-batch // self._rows))
        for count in (*range(wanted, 0, -1), *range(wanted + 1, batch + 1)):
            parts = even_sizes(batch, count)
            if admits(parts[0]) and admits(parts[-1]):
                return tuple(zip(itertools.accumulate((0, *parts[:-1])), parts, strict=True))
        return ()

    def _admits(self, sizes: dict[sympy.Symbol, int], rows: int) -> bool:
        values = {**sizes, **dict.fromkeys(self._batch, rows)}
        return all(guard.subs(values) == sympy.true for guard in self._guards)
