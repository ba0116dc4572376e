"""The symbolic sizes of a plan, compared as numbers: at its own binding, and where every symbol is larger.

Two expressions of one size need not look the same, so they are not compared as text. They are compared at numbers that
are multiples of the plan's own, by which a graph's assumptions on sizes mostly hold as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy

from ..plan_parts import Partition
from ..symbols import Evaluator
from .case import Case, Fault
from .figures import figures
from .ledger import Ledger

# Of the symbols in turn; the plan's own binding is the first.
_FACTORS = ((1,), (2,), (3, 5, 2, 7), (6, 1, 11, 4), (16, 9, 1, 5))


def symbolic_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the symbolic sizes of each partition."""
    symbols = case.reading.symbols
    seen: set[tuple[tuple[sympy.Symbol, int], ...]] = set()
    for factors in _FACTORS if case.numbers else ((1,),):
        own = {symbol.name: case.numbers[symbol] for symbol in symbols.told() if case.numbers[symbol] > 0}
        scaled = {name: n * factors[i % len(factors)] for i, (name, n) in enumerate(sorted(own.items()))}
        numbers = case.numbers if factors == (1,) else symbols.bind(scaled)
        key = tuple(sorted(numbers.items(), key=lambda pair: str(pair[0])))
        if key in seen:
            continue
        seen.add(key)
        ledger = case.ledger if factors == (1,) else case.sizes.at(numbers)
        found = [fault for place in range(len(case.plan.partitions)) for fault in _at(case, place, ledger, numbers)]
        yield from found
        if found:
            return


def _at(case: Case, place: int, ledger: Ledger, numbers: dict[sympy.Symbol, int]) -> Iterator[Fault]:
    partition: Partition = case.plan.partitions[place]
    first, end = case.ends[place], case.ends[place + 1]
    right = figures(ledger, first, end)
    path = f"partitions[{place}].symbolic"
    where = "".join(f" for {symbol}={number}" for symbol, number in numbers.items())
    pairs = [(moment.activation, moment.workspace) for moment in partition.moments]
    sizes = Evaluator([partition.weight, partition.state, *(size for pair in pairs for size in pair)])(numbers)
    for name, mine, its in zip(("weight", "state"), sizes, (right.weight_bytes, right.state_bytes), strict=False):
        if mine != its:
            yield Fault(f"{path}.{name}", f"it is {mine}{where}, and the model has {its}")
    moments = list(zip(sizes[2::2], sizes[3::2], strict=True))
    for row, (moment, (activation, workspace)) in enumerate(zip(partition.moments, moments, strict=True)):
        step = case.place[moment.node]
        if not first <= step < end:
            yield Fault(f"{path}.moments[{row}][0]", f"{moment.node} is not in the partition")
            continue
        if activation != right.levels[step - first]:
            why = f"it is {activation}{where}, and the model has {right.levels[step - first]}"
            yield Fault(f"{path}.moments[{row}][1]", f"{why} at {moment.node}")
        if workspace not in ledger.moments[step]:
            why = f"it is {workspace}{where}, and the model has {' or '.join(map(str, ledger.moments[step]))}"
            yield Fault(f"{path}.moments[{row}][2]", f"{why} at {moment.node}")
    peak = max((activation + workspace for activation, workspace in moments), default=0)
    if peak != right.peak_bytes:
        yield Fault(f"{path}.moments", f"their largest is {peak}{where}, and the model has {right.peak_bytes}")
    if partition.moments and partition.moments[0].node != partition.peak_node:
        yield Fault(f"{path}.moments[0][0]", f"it is {partition.moments[0].node}, and peak_node {partition.peak_node}")
