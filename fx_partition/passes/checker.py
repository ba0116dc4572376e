"""Checks plans and certificates, and shares no code with the planner: footprints are recomputed from the definition.

`certificate.py` defines witnesses and says what they prove.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .certificate import Certificate, Witness
from .chain import Chain, IntArray


def malformed(chain: Chain, boundaries: list[int]) -> list[str]:
    """Why ``boundaries`` are no boundaries of this chain: no reasons if they are."""
    if (
        boundaries[:1] != [0]
        or boundaries[-1] != chain.num_atoms
        or any(a >= b for a, b in pairwise(boundaries))
    ):
        return [f"the boundaries do not run from 0 to {chain.num_atoms}, ascending"]
    return []


def footprints(chain: Chain, boundaries: list[int]) -> list[int]:
    """The bytes of each partition."""
    judge = _Judge(chain)
    return [judge.footprint(a, b) for a, b in pairwise(boundaries)]


def verify(certificate: Certificate, chain: Chain, boundaries: list[int], budget: int) -> list[str]:
    """Why ``boundaries`` are not a plan within ``budget`` with the fewest partitions, as certified.

    No reasons if they are, and if both lower bounds hold. Uses the definition of a footprint in `chain.py`
    and nothing of the planner. O(n + e) plain work.
    """
    reasons = malformed(chain, boundaries)
    if reasons:
        return reasons
    judge = _Judge(chain)
    sizes = [judge.footprint(a, b) for a, b in pairwise(boundaries)]
    for index, (start, end) in enumerate(pairwise(boundaries)):
        if sizes[index] > budget and end - start > 1:
            reasons.append(f"partition {index} has {sizes[index]} bytes, over the budget of {budget}")
    if len(sizes) != certificate.min_partitions:
        reasons.append(f"the plan has {len(sizes)} partitions, the certificate claims {certificate.min_partitions}")
    return reasons + _bounds(judge, certificate, chain, boundaries, budget)


def verify_bounds(certificate: Certificate, chain: Chain, boundaries: list[int], budget: int) -> list[str]:
    """Why the lower bounds do not hold, for a plan that need not be within the budget (devices were short)."""
    return malformed(chain, boundaries) or _bounds(_Judge(chain), certificate, chain, boundaries, budget)


def _bounds(
    judge: _Judge, certificate: Certificate, chain: Chain, boundaries: list[int], budget: int
) -> list[str]:
    reasons = []
    if len(certificate.witnesses) != max(certificate.min_partitions - 1, 0):
        reasons.append(f"{len(certificate.witnesses)} witnesses do not prove {certificate.min_partitions} partitions")
    reasons += judge.faults(certificate.witnesses, budget + 1, "witness")
    bound = certificate.max_bytes_lower_bound
    parts = [(judge.footprint(a, b), b - a) for a, b in pairwise(boundaries)]
    maximum = max((size for size, atoms in parts if size <= budget or atoms > 1), default=0)
    if maximum < bound:
        reasons.append(f"the largest partition has {maximum} bytes, less than the proved bound of {bound}")
    if bound > 0:
        reasons += judge.faults_of_bound(certificate, len(parts), budget)
    return reasons


def verify_spread(certificate: Certificate, chain: Chain, runs: list[int], budgets: Sequence[int]) -> list[str]:
    """Why ``runs`` are not a plan over devices of different sizes, as certified; no reasons if they are.

    A plan for devices that do not hold the chain may exceed their budgets, and must be certified as such.
    """
    n, widest, used = chain.num_atoms, max(budgets), len(runs) - 1
    if runs[:1] != [0] or runs[-1] != n or used > len(budgets) or any(a > b for a, b in pairwise(runs)):
        return [f"the runs of {len(budgets)} devices do not go from 0 to {n}"]
    judge = _Judge(chain)
    reasons = judge.faults_in_order(certificate.witnesses, budgets, widest, "witness")
    if len(certificate.witnesses) != max(certificate.min_partitions - 1, 0):
        reasons.append(f"{len(certificate.witnesses)} witnesses do not prove {certificate.min_partitions} devices")
    if certificate.min_partitions > len(budgets):
        return reasons
    if used != certificate.min_partitions:
        reasons.append(f"the plan uses {used} devices, the certificate claims {certificate.min_partitions}")
    largest = 0
    for device, (start, end) in enumerate(pairwise(runs)):
        size = judge.footprint(start, end) if start < end else 0
        if end - start == 1 and size > widest:
            continue
        largest = max(largest, size)
        if size > budgets[device]:
            reasons.append(f"device {device} has {size} bytes, over its budget of {budgets[device]}")
    bound = certificate.max_bytes_lower_bound
    if largest < bound:
        reasons.append(f"the largest partition has {largest} bytes, less than the proved bound of {bound}")
    if bound > 0:
        if len(certificate.max_witnesses) != used:
            reasons.append(f"{len(certificate.max_witnesses)} witnesses do not prove a maximum on {used} devices")
        limits = [min(bound - 1, budget) for budget in budgets]
        reasons += judge.faults_in_order(certificate.max_witnesses, limits, widest, "witness of the maximum")
    return reasons


class _Judge:
    """Recomputes footprints from the definition."""

    def __init__(self, chain: Chain) -> None:
        self._adds_up = chain.adds_up
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
        if self._adds_up:
            made = sum(self._value_bytes[value] for value in last if self._value_def[value] >= i)
            return total + made + sum(self._workspace[i:j])

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

    def faults_in_order(
        self, witnesses: tuple[Witness, ...], limits: Sequence[int], widest: int, name: str
    ) -> list[str]:
        """What is wrong with one witness a device, from the first on: each begins where the one before it stopped."""
        reasons: list[str] = []
        start = 0
        for device, (first, rejected, size) in enumerate(witnesses):
            if device >= len(limits) or first != start or not first <= rejected < len(self._atom_start) - 1:
                return [*reasons, f"{name} {device}: atoms {first} .. {rejected} do not begin at {start}"]
            start = rejected
            actual = self.footprint(first, rejected + 1)
            if actual != size or actual <= limits[device]:
                reasons.append(f"{name} {device}: {actual} bytes, not {size} or not above {limits[device]}")
            if first == rejected and actual > widest:
                reasons.append(f"{name} {device}: atom {first} fits no device, and may be on this one")
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
