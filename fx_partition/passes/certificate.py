"""Why a plan is best, in a form that can be checked without trusting the planner.

Terms
-----
witness
    (first, rejected, bytes): the atoms first .. rejected, both included, have a footprint of ``bytes``. A
    footprint never falls when an interval grows, so if that is more than allowed, no partition may hold all
    of these atoms: every plan has a boundary after ``first`` and not after ``rejected``.
independent witnesses
    The next one begins at or after the ``rejected`` of the one before. Then no boundary serves two of them.

So k - 1 independent witnesses above the budget, of two or more atoms each, prove that every plan has at least
k partitions. And with m independent witnesses of B bytes or more, a plan of m partitions has too few
boundaries to cut all of them: one of its partitions holds a witness whole, and has at least B bytes. One atom
is never cut, so one witness of a single atom proves as much.

What the bound on the maximum covers: every plan with as many partitions as this one, and in it the partitions
that are not an oversize atom on its own; an oversize atom is as large as it is in every plan.

The witnesses come from sweeps of farthest reach: under the budget, and one byte under the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .chain import Chain, IntArray
from .contraction import Contraction, contract
from .dp import largest_partition, smallest_maximum
from .greedy import Sweep, Sweeper, check_budget

Witness = tuple[int, int, int]


@dataclass(frozen=True)
class Certificate:
    """Proof of two lower bounds; the module's docstring defines the terms.

    Attributes:
        min_partitions: no plan within the budget has fewer partitions.
        witnesses: ``min_partitions - 1`` independent ones, each of two or more atoms and above the budget.
        max_bytes_lower_bound: no plan with as many partitions as the certified one has a smaller maximum. The
            plans of `dp.py` attain it; those of `greedy.py` need not.
        max_witnesses: one of a single atom that is not oversize, or as many independent ones of two or more
            atoms as the plan has partitions; each of at least ``max_bytes_lower_bound``. Empty if that is 0.
    """

    min_partitions: int
    witnesses: tuple[Witness, ...]
    max_bytes_lower_bound: int
    max_witnesses: tuple[Witness, ...]


def certify(chain: Chain, boundaries: list[int], budget: int) -> Certificate:
    """Prove what can be proved for a plan: two sweeps if its maximum is the smallest, a bisection if not.

    Example: four atoms of 2 bytes that share nothing, budget 6, plan ``[0, 2, 4]``: at least 2 partitions, as
    the atoms 0 .. 3 have 8 bytes; a maximum of at least 4, as the atoms 0 .. 2 and the atoms 2 .. 3 have 4 or
    more.

    Raises:
        ValueError: if ``budget`` is negative, or ``boundaries`` do not run from 0 to the number of atoms,
            ascending.
    """
    check_budget(budget)
    for reason in _malformed(chain, boundaries):
        raise ValueError(reason)
    contraction = contract(chain)
    sweeper = Sweeper(contraction)
    sweep = sweeper.run(budget)
    bound, max_witnesses = _bound_maximum(contraction, sweeper, boundaries, budget)
    return Certificate(len(sweep.footprints), _witnesses(sweep), bound, max_witnesses)


def _bound_maximum(
    contraction: Contraction, sweeper: Sweeper, boundaries: list[int], budget: int
) -> tuple[int, tuple[Witness, ...]]:
    """The largest lower bound on the maximum for the plan's number of partitions, and its witnesses."""
    regular = np.where(contraction.alone > budget, 0, contraction.alone)
    largest_atom = int(regular.max(initial=0))
    maximum = largest_partition(contraction, boundaries, budget)
    m = len(boundaries) - 1
    if maximum > largest_atom:
        below = sweeper.run(maximum - 1, most=m)
        if len(below.rejected) == m:
            return maximum, _witnesses(below)
        _, maximum = smallest_maximum(sweeper, m, largest_atom, below, below.largest(maximum - 1))
    if maximum > largest_atom:
        return maximum, _witnesses(sweeper.run(maximum - 1, most=m))
    if maximum == 0:
        return 0, ()
    atom = int(regular.argmax())
    return maximum, ((atom, atom, maximum),)


def _witnesses(sweep: Sweep) -> tuple[Witness, ...]:
    starts = sweep.boundaries
    return tuple((starts[i], starts[i + 1], size) for i, size in enumerate(sweep.rejected))


def _malformed(chain: Chain, boundaries: list[int]) -> list[str]:
    if (
        boundaries[:1] != [0]
        or boundaries[-1] != chain.num_atoms
        or any(a >= b for a, b in pairwise(boundaries))
    ):
        return [f"the boundaries do not run from 0 to {chain.num_atoms}, ascending"]
    return []


def verify(certificate: Certificate, chain: Chain, boundaries: list[int], budget: int) -> list[str]:
    """Why ``boundaries`` are not a plan within ``budget`` with the fewest partitions, as certified.

    No reasons if they are, and if both lower bounds hold. Uses the definition of a footprint in `chain.py`
    and nothing of the planner. O(n + e) plain work.
    """
    reasons = _malformed(chain, boundaries)
    if reasons:
        return reasons
    judge = _Judge(chain)
    sizes = [judge.footprint(a, b) for a, b in pairwise(boundaries)]
    for index, (start, end) in enumerate(pairwise(boundaries)):
        if sizes[index] > budget and end - start > 1:
            reasons.append(f"partition {index} has {sizes[index]} bytes, over the budget of {budget}")
    if len(sizes) != certificate.min_partitions:
        reasons.append(
            f"the plan has {len(sizes)} partitions, the certificate claims {certificate.min_partitions}"
        )

    if len(certificate.witnesses) != max(certificate.min_partitions - 1, 0):
        reasons.append(
            f"{len(certificate.witnesses)} witnesses do not prove {certificate.min_partitions} partitions"
        )
    reasons += judge.faults(certificate.witnesses, budget + 1, "witness")

    bound = certificate.max_bytes_lower_bound
    counted = [
        size for size, (a, b) in zip(sizes, pairwise(boundaries), strict=True) if size <= budget or b - a > 1
    ]
    maximum = max(counted, default=0)
    if maximum < bound:
        reasons.append(f"the largest partition has {maximum} bytes, less than the proved bound of {bound}")
    if bound > 0:
        reasons += judge.faults_of_bound(certificate, len(sizes), budget)
    return reasons


class _Judge:
    """Recomputes footprints from the definition."""

    def __init__(self, chain: Chain) -> None:
        self._atom_start: list[int] = chain.atom_start.tolist()
        self._workspace: list[int] = chain.workspace.tolist()
        self._value_bytes: list[int] = chain.value_bytes.tolist()
        self._value_def: list[int] = chain.value_def.tolist()
        self._touches = _rows(chain.touch_start, chain.touch_value)
        self._weight_bytes: list[int] = chain.weight_bytes.tolist()
        self._reads = _rows(chain.weight_start, chain.weight_id)
        self._read_bytes = _rows(chain.weight_start, chain.weight_touch_bytes)
        # The last step that touches a value, or num_steps if the graph returns it.
        self._until: dict[int, int] = {}
        returned: list[int] = chain.value_returned.tolist()
        for step, values in enumerate(self._touches):
            for value in values:
                self._until[value] = chain.num_steps if returned[value] else step

    def footprint(self, first: int, end: int) -> int:
        """The bytes of the atoms [first, end)."""
        i, j = self._atom_start[first], self._atom_start[end]
        weights: dict[int, int] = {}
        last: dict[int, int] = {}
        for step in range(i, j):
            for weight, touched in zip(self._reads[step], self._read_bytes[step], strict=True):
                weights[weight] = weights.get(weight, 0) + touched
            for value in self._touches[step]:
                last[value] = step
        total = sum(min(self._weight_bytes[weight], touched) for weight, touched in weights.items())

        arrives: dict[int, int] = {}  # step -> bytes that are resident from it on
        leaves: dict[int, int] = {}  # step -> bytes that are resident up to it
        for value, step in last.items():
            size = self._value_bytes[value]
            arrives_at = max(self._value_def[value], i)
            leaves_at = j - 1 if self._until[value] >= j else step
            arrives[arrives_at] = arrives.get(arrives_at, 0) + size
            leaves[leaves_at] = leaves.get(leaves_at, 0) + size
        peak = resident = 0
        for step in range(i, j):
            resident += arrives.get(step, 0)
            peak = max(peak, resident + self._workspace[step])
            resident -= leaves.get(step, 0)
        return total + peak

    def faults(self, witnesses: tuple[Witness, ...], least: int, name: str) -> list[str]:
        """What is wrong with independent witnesses of two or more atoms and at least ``least`` bytes each."""
        reasons = []
        free = 0
        for index, (first, rejected, size) in enumerate(witnesses):
            if not free <= first < rejected < len(self._atom_start) - 1:
                reasons.append(
                    f"{name} {index}: atoms {first} .. {rejected} cannot stand for a boundary of their own"
                )
                continue
            free = rejected
            actual = self.footprint(first, rejected + 1)
            if actual != size:
                reasons.append(f"{name} {index}: atoms {first} .. {rejected} have {actual} bytes, not {size}")
            if actual < least:
                reasons.append(
                    f"{name} {index}: atoms {first} .. {rejected} have {actual} bytes, {least} are needed"
                )
        return reasons

    def faults_of_bound(self, certificate: Certificate, num_partitions: int, budget: int) -> list[str]:
        """What is wrong with the witnesses of the bound on the maximum."""
        witnesses, bound = certificate.max_witnesses, certificate.max_bytes_lower_bound
        if len(witnesses) == 1 and witnesses[0][0] == witnesses[0][1]:
            atom, _, size = witnesses[0]
            actual = self.footprint(atom, atom + 1) if 0 <= atom < len(self._atom_start) - 1 else -1
            if actual == size and bound <= actual <= budget:
                return []
            return [
                f"atom {atom} has {actual} bytes, and does not prove a maximum of {bound} within {budget}"
            ]
        if len(witnesses) < num_partitions:
            return [f"{len(witnesses)} witnesses do not prove a maximum for {num_partitions} partitions"]
        return self.faults(witnesses, bound, "witness of the maximum")


def _rows(start: IntArray, entries: IntArray) -> list[list[int]]:
    """Compressed rows as one list a step."""
    bounds, flat = start.tolist(), entries.tolist()
    return [flat[a:b] for a, b in pairwise(bounds)]
