"""What a plan says of other orders: all of them were searched, so many sets of atoms, or none.

A boundary of a plan over any order is a *downset*: a set of atoms that holds what each of its members needs. So a
search of all downsets is one of all orders. Their number is counted again here, and so is the best plan through them;
both stop where the planner itself may not have gone. How much a search looked at that was not exhaustive cannot be
found again: nothing follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..plan.request import NO_BUDGET, TIMED
from .boundaries import slack_of
from .case import Case, Fault
from .set_search import MOST_DOWNSETS, TooLarge, best_measure, count_downsets

_PATH = "certificate.exhaustive"


def search_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with what a plan says of the orders that were searched."""
    plan, proof = case.plan, case.plan.certificate
    if proof.orders_tried == 0:
        yield Fault("certificate.orders_tried", "it is 0, and the plan's own order is one")
        return
    may_search = (
        plan.algorithm == "dp" and plan.footprint == "peak" and not plan.device_budgets
        and not plan.budget_is_smallest and plan.budget_bytes < NO_BUDGET and plan.objective not in TIMED
    )  # fmt: skip
    if not may_search and (proof.orders_tried > 1 or proof.exhaustive):
        why = (
            f"no other order is looked at with algorithm={plan.algorithm}, objective={plan.objective}, "
            f"budget_is_smallest={plan.budget_is_smallest}, budget_bytes={plan.budget_bytes} and device_budgets"
        )
        yield Fault("certificate.orders_tried" if proof.orders_tried > 1 else _PATH, why)
    elif proof.exhaustive and case.is_short:
        yield Fault(_PATH, "devices are short, and no order is ruled out")
    elif proof.exhaustive and proof.orders_tried == 1:
        if len(plan.partitions) > 1 and not _is_only_order(atom_needs(case)):
            yield Fault(_PATH, f"there are other orders {case.where}, and one was tried")
    elif proof.exhaustive:
        try:
            yield from _exhausted(case)
        except TooLarge:
            why = f"{_PATH} is true, and a search of over {MOST_DOWNSETS} sets is not repeated"
            yield Fault("certificate.orders_tried", f"it is {proof.orders_tried} and {why}")


def atom_needs(case: Case) -> list[set[int]]:
    """For each atom, in the plan's order, the atoms that must run before it."""
    step_of = {t: step for step, t in enumerate(case.order)}
    atom_of = [atom for atom in range(case.stretches.count) for _ in range(case.starts[atom], case.starts[atom + 1])]
    needs: list[set[int]] = [set() for _ in range(case.stretches.count)]
    for before, after in case.needs.edges():
        a, b = atom_of[step_of[before]], atom_of[step_of[after]]
        if a != b:
            needs[b].add(a)
    return needs


def _is_only_order(needs: Sequence[set[int]]) -> bool:
    return all(atom in found for atom, found in enumerate(needs[1:]))


def _exhausted(case: Case) -> Iterator[Fault]:
    plan, claimed = case.plan, case.plan.certificate.orders_tried
    if slack_of(plan) > 0:
        why = f"no search is of all orders with the slack of objective={plan.objective}, max_slack={plan.max_slack}"
        yield Fault(_PATH, why)
        return
    needs = atom_needs(case)
    found = count_downsets(needs, claimed)
    if found != claimed:
        more = f"more than {claimed}" if found is None else str(found)
        why = f"it is {claimed} and {_PATH} is true, and the graph has {more} sets that may come first {case.where}"
        yield Fault("certificate.orders_tried", why)
        return
    budget = plan.budget_bytes
    own = (len(plan.partitions), case.largest(budget), case.cut_bytes)
    best = best_measure(case, needs, own)
    if best is not None and best < own:
        yield Fault(_PATH, f"another order has {best[0]} partitions, at most {best[1]} bytes and {best[2]} received")
