"""Whether a plan's boundaries are the ones that its algorithm and its objective ask for, and its trade-offs true.

Over the order in which a plan runs, the fewest partitions, the smallest maximum and the fewest bytes received are found
again. Where another order was searched and not every order was tried, the objective says only which plans were
compared: such a plan is held against the best one in the order of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

from ..plan.plan import Plan
from ..plan.request import NO_BUDGET, TIMED
from .case import Case, Fault
from .cuts import Cuts
from .windows import Stretches, farthest

_Row = tuple[int, int, int]
_COLUMNS = ("num_partitions", "max_bytes", "cut_bytes")
_MORE = 2  # a plan's trade-offs go so far beyond the fewest partitions


def slack_of(plan: Plan) -> float:
    """By what share of the smallest maximum a plan's largest partition may exceed it."""
    if plan.max_slack is not None:
        return plan.max_slack
    return math.inf if plan.objective == "traffic" else 0.0


def boundary_faults(case: Case, *, own_order: bool) -> Iterator[Fault]:
    """Yield what is wrong with the boundaries of a plan over devices of one size whose bounds hold.

    Args:
        own_order: whether the plan claims to be the best over the order in which it runs.
    """
    plan, count, budget = case.plan, len(case.plan.partitions), case.plan.budget_bytes
    fewest = case.filled
    is_short = 0 < plan.num_devices < len(fewest) and count <= plan.num_devices
    for place, (found, atoms) in enumerate(zip(case.figures, case.atoms, strict=True)):
        if found.total_bytes > budget and atoms > 1 and not is_short:
            over = f"over the budget of {budget}, with num_devices={plan.num_devices}"
            yield Fault(f"partitions[{place}].nodes", f"they hold {found.total_bytes} bytes, {over}")
    if plan.budget_is_smallest:
        yield from _smallest_budget(case)
    if plan.algorithm == "greedy" and (plan.objective != "balanced" or plan.max_slack is not None):
        yield Fault("algorithm", f"greedy follows no objective={plan.objective}, max_slack={plan.max_slack}")
    if plan.objective in TIMED:
        return
    if is_short:
        yield from _balanced(case)
    elif plan.algorithm == "greedy":
        if case.boundaries != fewest.starts and not _is_exact(case, len(fewest)):
            yield Fault("algorithm", "greedy fills one partition after another, and these are not filled so")
    elif count < len(fewest):
        yield Fault("partitions", f"they are {count}, and the budget asks for {len(fewest)}")
    elif own_order and count > len(fewest) and not _is_exact(case, len(fewest)):
        yield Fault("partitions", f"they are {count}, and {len(fewest)} are enough {case.where}")
    elif own_order:
        yield from _cheapest(case)


def _is_exact(case: Case, fewest: int) -> bool:
    """Whether so many partitions were asked for, none empty, as runtimes do whose stages are counted before."""
    return case.plan.budget_is_smallest and fewest < len(case.plan.partitions) == case.plan.num_devices


def _smallest_budget(case: Case) -> Iterator[Fault]:
    """Yield a fault if the devices would do with less, or do not with what the budget says."""
    budget, count, stretches = case.plan.budget_bytes, case.plan.num_devices, case.stretches
    if not count or max(stretches.alone, default=0) > budget or len(stretches.sweep(budget)) > count:
        yield Fault("budget_is_smallest", f"{count} devices of budget_bytes={budget} do not hold the graph")
    elif max(stretches.alone, default=0) < budget and len(stretches.sweep(budget - 1)) <= count:
        yield Fault("budget_is_smallest", f"num_devices={count} devices do with less than budget_bytes={budget}")


def _cheapest(case: Case) -> Iterator[Fault]:
    """Yield a fault if the largest partition exceeds its slack, or fewer bytes could be received within it."""
    plan, count, budget = case.plan, len(case.plan.partitions), case.plan.budget_bytes
    smallest, largest = plan.certificate.max_bytes_lower_bound, case.largest(case.plan.budget_bytes)
    slack = slack_of(plan)
    limit = _limit(plan, smallest, budget)
    if largest > limit:
        path = "algorithm" if slack == 0 else "max_slack" if plan.max_slack is not None else "objective"
        yield Fault(path, f"the largest partition has {largest} bytes, and {limit} are enough")
        return
    least = case.cuts.fewest(count, limit)
    path = "max_slack" if plan.max_slack else "objective"
    if least is None or case.cut_bytes > least:
        why = f"{case.cut_bytes} bytes are received, and {least} are enough within {limit} {case.where}"
        yield Fault(path, why)
    elif largest > smallest and case.cuts.fewest(count, largest - 1) == least:
        yield Fault(path, f"as few bytes are received with a largest partition below {largest}")


def _balanced(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with a plan for too few devices: its maximum, its number and its bytes are the least."""
    most, count = max(found.total_bytes for found in case.figures), len(case.plan.partitions)
    stretches = case.stretches
    if all(size < most for size in stretches.alone) and len(stretches.sweep(most - 1)) <= case.plan.num_devices:
        yield Fault("num_devices", f"the largest partition has {most} bytes, and so many devices do with less")
    elif count > len(stretches.sweep(most)):
        yield Fault("partitions", f"they are {count}, and {len(stretches.sweep(most))} have no larger maximum")
    else:
        least = Cuts(stretches, most).fewest(count, most)
        if least is None or case.cut_bytes > least:
            yield Fault("partitions", f"{case.cut_bytes} bytes are received, and {least} are enough within {most}")


def spread_boundary_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the boundaries of a plan over devices of different sizes whose bounds hold."""
    plan, budgets, widest = case.plan, case.budgets, case.plan.budget_bytes
    ends = _ends(case)
    if case.plan.certificate.min_partitions > len(budgets):
        yield from _overfilled(case, budgets, ends)
    elif plan.algorithm == "greedy":
        if farthest(case.stretches, budgets, widest) != ends:
            yield Fault("algorithm", "greedy fills one device after another, and these are not filled so")
    else:
        smallest, largest = plan.certificate.max_bytes_lower_bound, case.largest(widest)
        limit = _limit(plan, smallest, widest)
        used = budgets[: len(ends)]
        least = Cuts(case.stretches, widest).fewest_spread([min(limit, budget) for budget in used])
        path = "max_slack" if plan.max_slack else "objective"
        if largest > limit:
            yield Fault("algorithm", f"the largest partition has {largest} bytes, and {limit} are enough")
        elif least is None or case.cut_bytes > least:
            yield Fault(path, f"{case.cut_bytes} bytes are received, and {least} are enough within {limit}")
        elif largest > smallest:
            below = [min(largest - 1, budget) for budget in used]
            if Cuts(case.stretches, widest).fewest_spread(below) == least:
                yield Fault(path, f"as few bytes are received with a largest partition below {largest}")


def _ends(case: Case) -> list[int]:
    """Of each device up to the last that is used the atom behind its own; devices may be left out."""
    ends: list[int] = []
    for partition, end in zip(case.plan.partitions, case.boundaries[1:], strict=True):
        ends += [ends[-1] if ends else 0] * (partition.slot - len(ends))
        ends.append(end)
    return ends


def _overfilled(case: Case, budgets: list[int], ends: list[int]) -> Iterator[Fault]:
    """Yield what is wrong with a plan for devices that do not hold the graph: each exceeds its budget by the least."""
    stretches, none = case.stretches, 1 << 63
    sizes = zip(case.plan.partitions, case.figures, strict=True)
    over = max(found.total_bytes - partition.budget_bytes for partition, found in sizes)
    less = farthest(stretches, [budget + over - 1 for budget in budgets], none)
    least = Cuts(stretches, none).fewest_spread([budget + over for budget in budgets])
    if less and less[-1] == stretches.count:
        yield Fault("partitions", f"a device exceeds its budget by {over} bytes, and less is enough")
    elif least is None or case.cut_bytes > least:
        yield Fault("partitions", f"{case.cut_bytes} bytes are received, and {least} are enough")


def _limit(plan: Plan, smallest: int, budget: int) -> int:
    """The largest that a partition may be: the smallest maximum and the slack, within the budget."""
    slack = slack_of(plan)
    return budget if math.isinf(slack) else min(budget, math.floor(smallest * (1 + Fraction(slack))))


def trace_faults(case: Case, trace: Stretches) -> Iterator[Fault]:
    """Yield a fault if a plan of another order is no better than the best one in the order of the trace."""
    plan, budget = case.plan, case.plan.budget_bytes
    count, largest, received = len(plan.partitions), case.largest(budget), case.cut_bytes
    fewest = len(trace.sweep(budget))
    if count < fewest:
        return
    why = "the order of the trace has a plan that is as good"
    if count > fewest:
        yield Fault("objective", why)
        return
    smallest, slack = trace.smallest_maximum(count, budget), slack_of(plan)
    cuts = Cuts(trace, budget)
    if slack == 0:
        if largest > smallest or (largest == smallest and received >= (cuts.fewest(count, smallest) or 0)):
            yield Fault("objective", why)
        return
    limit = _limit(plan, smallest, budget)
    least = cuts.fewest(count, limit)
    if least is not None and (received > least or (received == least and cuts.fewest(count, largest) == least)):
        yield Fault("max_slack" if plan.max_slack else "objective", why)


def tradeoff_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the rows that say what other plans over the same order offer."""
    plan, budget = case.plan, case.plan.budget_bytes
    fewest = len(case.filled)
    has_rows = plan.objective not in TIMED and budget < NO_BUDGET and not _is_exact(case, fewest)
    rows = _rows(case, fewest) if has_rows else []
    expected = [rows]
    if has_rows and not case.is_short:  # a plan that a search has found is among its rows
        own = (len(plan.partitions), case.largest(budget), case.cut_bytes)
        if own not in rows:
            expected.append(sorted([own, *(row for row in rows if not _covers(row, own))]))
    found: list[_Row] = [(row.num_partitions, row.max_bytes, row.cut_bytes) for row in plan.tradeoffs]
    if found in expected:
        return
    nearest = max(expected, key=lambda rows: sum(row in rows for row in found))
    if len(found) != len(nearest):
        yield Fault("pareto", f"it has {len(found)} rows, and there are {len(nearest)} {case.where}")
    for place, (row, right) in enumerate(zip(found, nearest, strict=False)):
        for name, mine, its in zip(_COLUMNS, row, right, strict=True):
            if mine != its:
                yield Fault(f"pareto[{place}].{name}", f"it is {mine}, and must be {its} {case.where}")


def _covers(row: _Row, other: _Row) -> bool:
    """Whether one row is as good as another in every column."""
    return all(mine <= its for mine, its in zip(row, other, strict=True))


def _rows(case: Case, fewest: int) -> list[_Row]:
    """For each number of partitions the smallest maximum, then the fewest bytes; and the other way round.

    What a plan claims is tried first, and a row is not sought where another is as good.
    """
    budget, stretches, cuts = case.plan.budget_bytes, case.stretches, case.cuts
    rows: list[_Row] = []
    counts = range(fewest, min(fewest + _MORE, stretches.count) + 1)
    for count, least in zip(counts, cuts.fewest_of_each(counts, budget), strict=True):
        least = least or 0
        claimed = [row for row in case.plan.tradeoffs if row.num_partitions == count]
        guesses = [*(row.max_bytes for row in claimed), *(most for _, most, _ in rows)]
        smallest = stretches.smallest_maximum(count, budget, guesses)
        _add(rows, (count, smallest, cuts.fewest(count, smallest) or 0))
        # A row that receives as little is beaten by those of the others that do, unless its maximum is below theirs.
        high = min((most - 1 for _, most, received in rows if received <= least), default=budget)
        if high > smallest and (high >= budget or cuts.fewest(count, high) == least):
            guesses = [row.max_bytes for row in claimed if row.cut_bytes == least]
            _add(rows, (count, _least_maximum(cuts, count, least, smallest, min(high, budget), guesses), least))
    return rows


def _add(rows: list[_Row], row: _Row) -> None:
    if not any(_covers(other, row) for other in rows):
        rows.append(row)


def _least_maximum(
    cuts: Cuts, count: int, least: int, low: int, high: int, guesses: list[int]
) -> int:
    """The smallest maximum of plans that receive the fewest bytes; what a plan claims is tried first."""
    for guess in guesses:
        if low < guess <= high and cuts.fewest(count, guess) == least:
            high = guess
            if cuts.fewest(count, high - 1) != least:
                return high
    while low < high:
        middle = (low + high) // 2
        if cuts.fewest(count, middle) == least:
            high = middle
        else:
            low = middle + 1
    return high
