"""The symbolic sizes of a plan, compared as numbers: at its own binding, and where every symbol is larger.

Two expressions of one size need not look the same, so they are not compared as text. They are compared at numbers that
are multiples of the plan's own, by which a graph's assumptions on sizes mostly hold as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy

from ..capture.symbolic_sizes import Evaluator, Size
from ..plan.records import Partition
from .case import Case, Fault
from .figures import figures
from .ledger import Ledger

# Of the symbols in turn.
_FACTORS = ((2,), (3, 5, 2, 7), (6, 1, 11, 4), (16, 9, 1, 5))


def symbolic_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the symbolic sizes of each partition; those of one binding are enough."""
    evaluator = Evaluator([size for partition in case.plan.partitions for size in _sizes(partition)])
    for numbers in _bindings(case):
        ledger = case.ledger if numbers == case.numbers else case.sizes.at(numbers)
        found: list[Fault] = []
        values = iter(evaluator(numbers))
        where = "".join(f" for {symbol}={number}" for symbol, number in numbers.items())
        for place, partition in enumerate(case.plan.partitions):
            mine = [next(values) for _ in _sizes(partition)]
            found += _at(case, place, ledger, mine, where)
        if found:
            yield from found
            return


def _bindings(case: Case) -> list[dict[sympy.Symbol, int]]:
    """The plan's own numbers and, where there are symbols, some multiples of them."""
    symbols, own = case.reading.symbols, case.numbers
    found = [own]
    told = {symbol.name: own[symbol] for symbol in symbols.known_numbers() if own[symbol] > 0}
    for factors in _FACTORS if told else ():
        scaled = {name: n * factors[i % len(factors)] for i, (name, n) in enumerate(sorted(told.items()))}
        numbers = symbols.bind(scaled)
        if numbers not in found:
            found.append(numbers)
    return found


def _sizes(partition: Partition) -> list[Size]:
    moments = (size for moment in partition.moments for size in (moment.activation, moment.workspace))
    return [partition.weight, partition.state, *moments]


def _at(case: Case, place: int, ledger: Ledger, mine: list[int], where: str) -> Iterator[Fault]:
    """Yield what is wrong with the sizes of one partition for one binding.

    Args:
        mine: the plan's sizes, in the order of `_sizes`.
    """
    partition = case.plan.partitions[place]
    first, end = case.ends[place], case.ends[place + 1]
    right = figures(ledger, first, end)
    path = f"partitions[{place}].symbolic"
    for name, size, its in zip(("weight", "state"), mine, (right.weight_bytes, right.state_bytes), strict=False):
        if size != its:
            yield Fault(f"{path}.{name}", f"it is {size}{where}, and the model has {its}")
    moments = list(zip(mine[2::2], mine[3::2], strict=True))
    if ledger.adds_up and moments != [(right.activation_bytes, right.workspace_bytes)]:
        why = f"they are {moments}{where}, and the model has {[(right.activation_bytes, right.workspace_bytes)]}"
        yield Fault(f"{path}.moments", why)
    for row, (moment, (activation, workspace)) in enumerate(zip(partition.moments, moments, strict=True)):
        if ledger.adds_up:
            break
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
