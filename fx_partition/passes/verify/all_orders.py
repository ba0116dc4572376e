"""What a plan claims about every order: a number of partitions that none goes below.

The reason is in `check_order_bound`, with the terms; here it is counted again from the reading of the graph. An atom is
regular if all that it touches is within the budget at one time, and bare if its largest step alone is not. Partitions
with a regular atom hold every weight that such atoms read, and what they make that is live at the moment, each beside
the least that a step of theirs touches besides; a bare atom is a partition of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil

from .case import Case, Fault
from .ledger import Ledger

_PATH = "certificate.fewest_over_all_orders"
# The planner rounds each part of a partition down to this share, so that it never claims too much.
_SHARE = 1 << 48


def all_orders_faults(case: Case, traced: Ledger, starts: Sequence[int], *, is_moved: bool) -> Iterator[Fault]:
    """Yield what is wrong with what a plan says that no order can beat.

    Args:
        traced: the steps in the order of the trace.
        starts: the step at which each atom of that begins, then the number of steps.
        is_moved: whether steps may have been moved out of an atom, so that the atoms are others.
    """
    proof, budget = case.plan.certificate, case.plan.budget_bytes
    claimed, moment = proof.fewest_over_all_orders, proof.moment
    if not claimed:
        if moment:
            yield Fault("certificate.moment", f"it is {moment}, and {_PATH} is 0: nothing is claimed")
        return
    if claimed > len(case.plan.partitions):
        yield Fault(_PATH, f"it is {claimed}, and the plan has {len(case.plan.partitions)} partitions")
    if is_moved or proof.orders_tried == 1:
        where = "steps may have left a large atom" if is_moved else "one order is tried"
        yield Fault(_PATH, f"it is {claimed}, and no bound is sought where {where}")
        return
    shown = _fewest(_regular(traced, starts, budget), traced, budget, traced.names.index(moment) if moment else None)
    if claimed != shown:
        path = "certificate.moment" if moment and claimed > shown else _PATH
        yield Fault(path, f"{_PATH} is {claimed}, and {shown} are needed by {moment or 'the weights alone'}")


@dataclass(frozen=True)
class _Regular:
    """The regular atoms of a graph.

    Attributes:
        atoms: of each (its first step, the step behind its last, the bytes that it reads of each weight).
        at_step: of each step of the graph what it touches and allocates.
        bare: how many atoms are alone in every plan.
    """

    atoms: list[tuple[int, int, dict[int, int]]]
    at_step: list[int]
    bare: int

    def largest(self, first: int, end: int) -> int:
        return max(self.at_step[first:end])


def _regular(ledger: Ledger, starts: Sequence[int], budget: int) -> _Regular:
    at_step = [
        sum(ledger.sizes[memory] for memory in touched) + workspace
        for touched, workspace in zip(ledger.activations, ledger.workspace, strict=True)
    ]
    atoms, bare = [], 0
    for first, end in pairwise(starts):
        read: dict[int, int] = {}
        for step in range(first, end):
            for weight, size in ledger.weights[step]:
                read[weight] = min(ledger.sizes[weight], read.get(weight, 0) + size)
        touched = {memory for step in range(first, end) for memory in ledger.activations[step]}
        held = sum(read.values())
        if held + sum(ledger.sizes[m] for m in touched) + max(ledger.workspace[first:end]) <= budget:
            atoms.append((first, end, read))
        elif held + max(at_step[first:end]) > budget:
            bare += 1
    return _Regular(atoms, at_step, bare)


def _fewest(regular: _Regular, ledger: Ledger, budget: int, moment: int | None) -> int:
    """The partitions that no order goes below; linear in steps and what they touch."""
    if not regular.atoms:
        return max(regular.bare, int(len(ledger) > 0))
    if moment is None:
        return regular.bare + max(1, ceil(_share_of_weights(regular, ledger, budget)))
    held: dict[int, int] = {}
    for _, _, read in regular.atoms:
        for weight, size in read.items():
            held[weight] = min(ledger.sizes[weight], held.get(weight, 0) + size)
    mine = {step for first, end, _ in regular.atoms for step in range(first, end)}
    live = {
        memory
        for memory, last in ledger.last.items()
        if ledger.made_at[memory] in mine and ledger.made_at[memory] <= moment < last
    }
    beside = [regular.largest(first, end) for first, end, _ in regular.atoms]
    for step in {ledger.made_at[memory] for memory in live}:
        others = (ledger.sizes[m] for m in ledger.activations[step] if m not in live)
        beside.append(sum(others) + ledger.workspace[step])
    room = budget - min(beside)
    total = sum(held.values()) + sum(ledger.sizes[memory] for memory in live)
    return regular.bare + max(1, ceil(Fraction(total, room)) if room > 0 else 0)


def _share_of_weights(regular: _Regular, ledger: Ledger, budget: int) -> Fraction:
    """The partitions that the weights fill that some regular atom reads whole."""
    room: dict[int, int] = {}
    for first, end, read in regular.atoms:
        left = budget - regular.largest(first, end)
        for weight, size in read.items():
            if size == ledger.sizes[weight] > 0:
                room[weight] = max(room.get(weight, 0), left)
    by_room: dict[int, int] = {}
    for weight, left in room.items():
        by_room[left] = by_room.get(left, 0) + ledger.sizes[weight]
    return Fraction(sum(total * _SHARE // left for left, total in by_room.items()), _SHARE)
