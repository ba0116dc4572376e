"""What a plan claims about every order: a number of partitions that none goes below.

The reason is in `check_order_bound`, with the terms; here it is counted again from the reading of the graph. An atom is
regular if all that it touches is within the budget at one time, and bare if its largest step alone is not. Partitions
with a regular atom hold every weight that such atoms read, and what they make that is live at the moment, each of
them together with the least that a step of such an atom touches in addition; a bare atom is a partition of its own.

Where so many partitions are claimed to run before and behind some atoms, those atoms are found again, as `order_ends`
says: by what each has before and behind it, and by pairs that no partition can hold. Then the same is counted of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil

from .case import Case, Fault
from .ledger import Ledger
from .order import Needs

_PATH = "certificate.fewest_over_all_orders"
# The planner rounds each part of a partition down to this share, so that it never claims too much.
_SHARE = 1 << 48
# Where there are more atoms, or touches, the planner does not look for what runs before and behind some.
_MOST_ATOMS, _MOST_TOUCHES = 64, 2048


def all_orders_faults(case: Case, traced: Ledger, starts: Sequence[int], *, is_moved: bool) -> Iterator[Fault]:
    """Yield what is wrong with what a plan says that no order can beat.

    Args:
        traced: the steps in the order of the trace.
        starts: the step at which each atom of that begins, then the number of steps.
        is_moved: whether steps may have been moved out of an atom, so that the atoms are others.
    """
    proof, budget = case.plan.certificate, case.plan.budget_bytes
    claimed, moment = proof.fewest_over_all_orders, proof.moment
    ends = {"partitions_before": proof.partitions_before, "partitions_behind": proof.partitions_behind}
    if not claimed:
        for name, claim in {"moment": moment, **ends}.items():
            if claim:
                yield Fault(f"certificate.{name}", f"it is {claim}, and {_PATH} is 0: nothing is claimed")
        return
    if claimed > len(case.plan.partitions):
        yield Fault(_PATH, f"it is {claimed}, and the plan has {len(case.plan.partitions)} partitions")
    if is_moved or proof.orders_tried == 1:
        where = "steps may have left a large atom" if is_moved else "one order is tried"
        yield Fault(_PATH, f"it is {claimed}, and no bound is sought where {where}")
        return
    atoms = _Atoms(traced, starts, budget)
    among = list(range(atoms.count))
    if any(ends.values()):
        name = next(name for name, claim in ends.items() if claim)
        if atoms.count > _MOST_ATOMS or sum(map(len, traced.activations)) > _MOST_TOUCHES:
            yield Fault(f"certificate.{name}", f"it is {ends[name]}, and the graph is too large for such a bound")
            return
        head, tail = _heads_and_tails(atoms, case.needs)
        among = [a for a in among if head[a] > proof.partitions_before and tail[a] > proof.partitions_behind]
        if not among:
            yield Fault(f"certificate.{name}", f"it is {ends[name]}, and no node has so many before and behind it")
            return
    shown = sum(ends.values()) + atoms.fewest(among, traced.names.index(moment) if moment else None)
    if claimed != shown:
        path = "certificate.moment" if moment and claimed > shown else _PATH
        where = " and ".join(f"certificate.{name} {claim}" for name, claim in ends.items())
        why = f"{_PATH} is {claimed}, and {shown} are needed by {moment or 'the weights alone'} with {where}"
        yield Fault(path, why)


class _Atoms:
    """The atoms of a graph in the order of the trace, and what sets of them need.

    Attributes:
        count: how many there are.
        spans: of each its first step, and the step behind its last.
        ledger: the steps.
        budget: bytes of a device.
    """

    def __init__(self, ledger: Ledger, starts: Sequence[int], budget: int) -> None:
        self.ledger, self.budget = ledger, budget
        self.spans = list(pairwise(starts))
        self.count = len(self.spans)
        self.at_step = [
            sum(ledger.sizes[memory] for memory in touched) + workspace
            for touched, workspace in zip(ledger.activations, ledger.workspace, strict=True)
        ]
        self._read: list[dict[int, int]] = []
        self._regular: list[bool] = []
        self._bare: list[bool] = []
        for first, end in self.spans:
            read = self.weights(range(first, end))
            touched = {memory for step in range(first, end) for memory in ledger.activations[step]}
            together = sum(ledger.sizes[m] for m in touched) + max(ledger.workspace[first:end])
            self._read.append(read)
            self._regular.append(sum(read.values()) + together <= budget)
            self._bare.append(sum(read.values()) + max(self.at_step[first:end]) > budget)

    def weights(self, steps: Iterable[int]) -> dict[int, int]:
        """The bytes that some steps read of each weight."""
        read: dict[int, int] = {}
        for step in steps:
            for weight, size in self.ledger.weights[step]:
                read[weight] = min(self.ledger.sizes[weight], read.get(weight, 0) + size)
        return read

    def _largest(self, atom: int) -> int:
        first, end = self.spans[atom]
        return max(self.at_step[first:end])

    def _made(self, atoms: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield (memory, the step that makes it) for all that some atoms make."""
        made_at = self.ledger.made_at
        for atom in atoms:
            for step in range(*self.spans[atom]):
                yield from ((m, step) for m in self.ledger.activations[step] if made_at[m] == step)

    def fewest(self, atoms: Sequence[int], moment: int | None) -> int:
        """The partitions that some atoms take in any order; linear in their steps and what these touch."""
        ledger = self.ledger
        bare = sum(self._bare[atom] for atom in atoms)
        regular = [atom for atom in atoms if self._regular[atom]]
        if not regular:
            return max(bare, int(len(atoms) > 0))
        if moment is None:
            return bare + max(1, ceil(self._share_of_weights(regular)))
        held = self.weights(step for atom in regular for step in range(*self.spans[atom]))
        live = {memory for memory, made in self._made(regular) if made <= moment < ledger.last[memory]}
        least = [self._largest(atom) for atom in regular]
        for step in {ledger.made_at[memory] for memory in live}:
            others = (ledger.sizes[m] for m in ledger.activations[step] if m not in live)
            least.append(sum(others) + ledger.workspace[step])
        room = self.budget - min(least)
        total = sum(held.values()) + sum(ledger.sizes[memory] for memory in live)
        return bare + max(1, ceil(Fraction(total, room)) if room > 0 else 0)

    def most(self, atoms: Sequence[int]) -> int:
        """The partitions that some atoms take by their weights alone, or when most is live that they make."""
        ledger = self.ledger
        more: dict[int, int] = {}
        for memory, step in self._made(atom for atom in atoms if self._regular[atom]):
            for t, size in ((step, ledger.sizes[memory]), (ledger.last[memory], -ledger.sizes[memory])):
                more[t] = more.get(t, 0) + size
        moments = sorted(more)
        live = list(accumulate(more[t] for t in moments))
        alone = self.fewest(atoms, None)
        return max(alone, self.fewest(atoms, moments[live.index(max(live))])) if any(live) else alone

    def _share_of_weights(self, regular: Sequence[int]) -> Fraction:
        """The partitions that the weights fill that some of these atoms read whole."""
        sizes = self.ledger.sizes
        room: dict[int, int] = {}
        for atom in regular:
            left = self.budget - self._largest(atom)
            for weight, size in self._read[atom].items():
                if size == sizes[weight] > 0:
                    room[weight] = max(room.get(weight, 0), left)
        by_room: dict[int, int] = {}
        for weight, left in room.items():
            by_room[left] = by_room.get(left, 0) + sizes[weight]
        return Fraction(sum(total * _SHARE // left for left, total in by_room.items()), _SHARE)

    def fits(self, hull: Set[int], not_earlier: Set[int]) -> bool:
        """Whether some atoms may be in one partition, when ``not_earlier`` cannot run in one before it."""
        ledger = self.ledger
        atom_of = {step: atom for atom, span in enumerate(self.spans) for step in range(*span)}
        steps = [step for step in range(len(ledger)) if atom_of[step] in hull]
        until: dict[int, int] = {}
        for step, touched in enumerate(ledger.activations):
            for memory in touched:
                made = ledger.made_at[memory]
                if (made >= 0 and atom_of[made] in hull) or atom_of[step] in not_earlier:
                    until[memory] = step
        present = {memory for step in steps for memory in ledger.activations[step]}
        peak = 0
        for step in steps:
            resident = (
                ledger.sizes[m] for m in present
                if ledger.made_at[m] <= step and (ledger.returned[m] or step <= until[m])
            )  # fmt: skip
            peak = max(peak, sum(resident) + ledger.workspace[step])
        return sum(self.weights(steps).values()) + peak <= self.budget


def _heads_and_tails(atoms: _Atoms, needs: Needs) -> tuple[list[int], list[int]]:
    """Of each atom the partitions that any plan has up to the one that holds it, and from that one on, at least."""
    atom_of = [atom for atom, (first, end) in enumerate(atoms.spans) for _ in range(first, end)]
    before: list[set[int]] = [set() for _ in range(atoms.count)]
    behind: list[set[int]] = [set() for _ in range(atoms.count)]
    edges = {(atom_of[a], atom_of[b]) for a, b in needs.edges() if atom_of[a] != atom_of[b]}
    for a, b in sorted(edges, key=lambda edge: edge[1]):  # all before `a` is known when it is a `b` no more
        before[b] |= before[a] | {a}
    for b, found in enumerate(before):
        for a in found:
            behind[a].add(b)

    def apart(first: int, last: int) -> bool:
        return not atoms.fits({first, last} | behind[first] & before[last], behind[first] | {first})

    head, tail = [1] * atoms.count, [1] * atoms.count
    for atom in range(atoms.count):
        known = sorted((head[other], other) for other in before[atom])
        head[atom] = max(atoms.most(sorted({*before[atom], atom})), *(rank for rank, _ in known), 1)
        head[atom] += any(rank == head[atom] and apart(other, atom) for rank, other in known)
    for atom in reversed(range(atoms.count)):
        known = sorted((tail[other], other) for other in behind[atom])
        tail[atom] = max(atoms.most(sorted({*behind[atom], atom})), *(rank for rank, _ in known), 1)
        tail[atom] += any(rank == tail[atom] and apart(atom, other) for rank, other in known)
    return head, tail
