"""The fewest bytes that cross boundaries, over all plans of an order with a number of partitions and a limit.

A layered programme: ``cost[j][b]`` is the least for the first b atoms in j partitions, and the next partition [a, b)
adds the bytes that it receives. When the atom behind b is taken in, what it touches for the first time since an atom p
is received by every partition that begins behind p: an addition to a range of a, kept in a tree of minima.

Only the layers that a plan can be in are kept: b atoms need at least so many partitions, and so do the others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from .windows import Stretches

_NEVER = 1 << 80


class Cuts:
    """Asks for the fewest bytes again and again over the same atoms.

    Args:
        stretches: the atoms.
        budget: an atom above it may be a partition of its own, whatever the limit.
    """

    def __init__(self, stretches: Stretches, budget: int) -> None:
        self._stretches, self._budget = stretches, budget
        ledger, starts = stretches.ledger, stretches.starts
        atom_of = [atom for atom in range(stretches.count) for _ in range(starts[atom], starts[atom + 1])]
        # Of each atom: (the atom that touched an activation before, bytes) for those that may be received here.
        self._arrivals: list[list[tuple[int, int]]] = [[] for _ in range(stretches.count)]
        for step, touched in enumerate(ledger.activations):
            for memory, previous in zip(touched, ledger.previous[step], strict=True):
                if ledger.made_at[memory] in (-1, step) or not ledger.sizes[memory]:
                    continue
                if atom_of[previous] < atom_of[step]:
                    self._arrivals[atom_of[step]].append((atom_of[previous], ledger.sizes[memory]))

    def fewest(self, count: int, limit: int) -> int | None:
        """The fewest bytes received in a plan of ``count`` partitions within ``limit``; None if there is no plan.

        O((atoms + touches) log(atoms)) for each layer that ``count`` leaves open beyond the fewest partitions.
        """
        n = self._stretches.count
        if any(limit < size <= self._budget for size in self._stretches.alone):
            return None
        earliest = self._stretches.earliest(limit)
        least = [0]
        for b in range(1, n + 1):
            least.append(least[earliest[b]] + 1)
        behind = _least_behind(earliest)
        spare = count - least[n]
        if spare < 0 or count > n:
            return None
        trees = [_Minima(n + 1) for _ in range(spare + 1)]
        trees[0].put(0, 0)
        for b in range(1, n + 1):
            for atom, size in self._arrivals[b - 1]:
                for tree in trees:
                    tree.add(atom + 1, b, size)
            for more in range(spare + 1):
                layer = least[b] + more
                if layer > count - behind[b] or layer > b:
                    break
                found = _NEVER
                for other, tree in enumerate(trees):  # of a with least[a] + other == layer - 1
                    low = bisect_left(least, layer - 1 - other, earliest[b], b)
                    high = bisect_right(least, layer - 1 - other, earliest[b], b)
                    if low < high:
                        found = min(found, tree.least(low, high))
                if b == n and layer == count:
                    return found if found < _NEVER else None
                if b < n and found < _NEVER:
                    trees[more].put(b, found)
        return 0 if n == count == 0 else None

    def fewest_spread(self, limits: Sequence[int]) -> int | None:
        """The same for devices of these limits in their order, of which each takes a stretch that may be empty.

        O((atoms + touches) log(atoms)) for each device.
        """
        n, alone = self._stretches.count, self._stretches.alone
        before = [0] + [_NEVER] * n
        for limit in limits:
            earliest = self._stretches.earliest(limit)
            tree = _Minima(n + 1)
            found = list(before)
            for b in range(1, n + 1):
                tree.put(b - 1, before[b - 1])
                for atom, size in self._arrivals[b - 1]:
                    tree.add(atom + 1, b, size)
                if alone[b - 1] <= limit or alone[b - 1] > self._budget:
                    found[b] = min(found[b], tree.least(earliest[b], b))
            before = found
        return before[n] if before[n] < _NEVER else None


def _least_behind(earliest: list[int]) -> list[int]:
    """For each a the fewest partitions that hold the atoms from a on."""
    n = len(earliest) - 1
    reach = [0] * (n + 1)
    for b, first in enumerate(earliest):
        reach[first] = b
    reach = list(accumulate(reach, max))
    found = [0] * (n + 1)
    for a in range(n - 1, -1, -1):
        found[a] = found[reach[a]] + 1
    return found


class _Minima:
    """Numbers at places, of which ranges are added to and the least of ranges is asked for; a logarithm each."""

    def __init__(self, count: int) -> None:
        self._half = 1 << (count + 1).bit_length()
        self._least = [_NEVER] * (2 * self._half)
        self._added = [0] * (2 * self._half)

    def put(self, place: int, number: int) -> None:
        at = place + 1 + self._half
        above = at >> 1
        while above:
            number -= self._added[above]
            above >>= 1
        self._least[at] = number
        self._lift(at >> 1)

    def add(self, first: int, end: int, number: int) -> None:
        """Add to the places [first, end)."""
        low, high = first + self._half, end + 1 + self._half
        least, added = self._least, self._added
        while low ^ high ^ 1:
            for at in ((low ^ 1,) if not low & 1 else ()) + ((high ^ 1,) if high & 1 else ()):
                least[at] += number
                added[at] += number
            low >>= 1
            high >>= 1
            least[low] = min(least[2 * low], least[2 * low + 1]) + added[low]
            least[high] = min(least[2 * high], least[2 * high + 1]) + added[high]
        self._lift(low >> 1)

    def least(self, first: int, end: int) -> int:
        """The least number at the places [first, end); at least `_NEVER` if there is none."""
        low, high = first + self._half, end + 1 + self._half
        left = right = 2 * _NEVER
        while low ^ high ^ 1:
            if not low & 1:
                left = min(left, self._least[low ^ 1])
            if high & 1:
                right = min(right, self._least[high ^ 1])
            low >>= 1
            high >>= 1
            left += self._added[low]
            right += self._added[high]
        found = min(left, right)
        low >>= 1
        while low:
            found += self._added[low]
            low >>= 1
        return found

    def _lift(self, at: int) -> None:
        while at:
            self._least[at] = min(self._least[2 * at], self._least[2 * at + 1]) + self._added[at]
            at >>= 1
