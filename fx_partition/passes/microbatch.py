"""How large a microbatch may be, and how a batch is cut into microbatches.

Terms
-----
microbatch
    Some rows of a batch, which run through the graph together. Sizes of the microbatches of a batch differ by one at
    most, as those of ``torch.tensor_split`` do.
largest microbatch
    The most rows for which a plan needs no more partitions than for the fewest rows, and no more of them exceed the
    budget: more rows would buy the same weights a further partition, or push activations out of the cache. What exceeds
    the budget for the fewest rows (an oversize weight) exceeds it for any, and does not count.

Example: weights of 4 MiB and 100 KiB of activations a row, on devices of 1.5 MiB: three partitions for up to five rows,
so a batch of 32 runs as seven microbatches of four and five rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy

from .capture import Captured
from .errors import PartitionError
from .facts import Facts
from .plan import Plan
from .planning import make_plan
from .request import Request
from .symbols import evaluate

#: Rows that a microbatch has at least: tracers and compilers take one row for a size of its own kind.
FEWEST = 2


def even_sizes(batch: int, count: int) -> tuple[int, ...]:
    """The sizes of ``count`` microbatches, the larger ones first.

    Example::

        >>> even_sizes(8, 3)
        (3, 3, 2)
    """
    return tuple(batch // count + (i < batch % count) for i in range(count))


def plan_microbatches(
    captured: Captured, facts: Facts, request: Request, symbols: tuple[str, ...], microbatches: int | None
) -> tuple[Plan, int]:
    """The plan for microbatches, and the rows of the largest one.

    Args:
        symbols: names of the batch's symbols, one or more that are taken for the same.
        microbatches: into how many the batch is cut; None: see `largest_microbatch`.
    """
    batch = _batch(facts, request, symbols[0])
    if microbatches is None:
        plan = functools.partial(_plan, captured, facts, request, symbols)
        return largest_microbatch(plan, symbols[0], batch, FEWEST)
    rows = max(FEWEST, -(-batch // microbatches))
    return _plan(captured, facts, request, symbols, rows), rows


def _batch(facts: Facts, request: Request, symbol: str) -> int:
    (size,) = (s for s in facts.symbols.hints if s.name == symbol)
    return evaluate(size, facts.symbols.bind(request.bind))


def _plan(captured: Captured, facts: Facts, request: Request, symbols: tuple[str, ...], rows: int) -> Plan:
    names = {name for name, symbol in facts.symbols.dims.items() if symbol.name in symbols}
    bind = {name: size for name, size in (request.bind or {}).items() if name not in names}
    return make_plan(captured, facts, replace(request, bind={**bind, **dict.fromkeys(symbols, rows)}))


def largest_microbatch(plan: Callable[[int], Plan], symbol: str, batch: int, fewest: int = 1) -> tuple[Plan, int]:
    """The largest microbatch of a batch, and the plan for it.

    Footprints do not fall when rows are added, so a bisection finds it; it starts at the rows for which the plan of the
    fewest already fits (`Plan.largest`).

    Args:
        plan: the plan for so many rows.
        symbol: the batch's, in the plan.
        batch: the rows of the whole batch.
        fewest: the fewest rows that a microbatch may have.

    Raises:
        PartitionError: the batch has fewer rows than that.
    """
    if batch < fewest:
        raise PartitionError(f"the batch has {batch} rows, and a microbatch has {fewest} at least; set microbatches=1")
    first = plan(fewest)

    def as_good(other: Plan) -> bool:
        return other.num_partitions <= first.num_partitions and _spills(other) <= _spills(first)

    whole = plan(batch)
    if as_good(whole):
        return whole, batch
    low = min(batch - 1, max(fewest, first.largest(symbol) if not first.spill_bytes else 0))
    best, high = plan(low), batch
    if not as_good(best):
        best, low, high = first, fewest, low
    while high - low > 1:
        middle = (low + high) // 2
        if as_good(found := plan(middle)):
            best, low = found, middle
        else:
            high = middle
    return best, low


def _spills(plan: Plan) -> int:
    return sum(partition.spill_bytes > 0 for partition in plan.partitions)


class Cutter:
    """Into which blocks of rows a batch is cut; the answer for sizes seen before is remembered.

    Args:
        symbols: the symbols of the graph's size inputs, in their order.
        batch: the batch's symbol, and those that are taken for the same.
        count: how many microbatches; None: as many as ``rows`` needs.
        rows: the rows of the largest microbatch.
        guards: what the compiled stages assume of their sizes; a microbatch must satisfy it, else the batch is cut into
            fewer (one that is the whole batch at the least), then into more.

    Example::

        >>> s = sympy.Symbol("s", positive=True, integer=True)
        >>> cut = Cutter((s,), (s,), 3, 4, [sympy.Ge(s, 2)])
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
        """(first row, rows) of each microbatch; empty: there is no such cut. ``sizes`` are those of ``symbols``."""
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
