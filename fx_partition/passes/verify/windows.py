"""Footprints of stretches of atoms: one that grows at its end and shrinks at its start, and sweeps of farthest reach.

Every move changes the bytes at the steps that stay in the window by one and the same amount: an activation that the
window receives is resident from its first step on, and one that leaves with the first step was resident in all or none
of the others. So these bytes are kept apart from a shared offset, and of the steps only those that can be the fullest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .ledger import Ledger


class Window:
    """The footprint of the atoms [first, end); each move costs what the atom moved touches.

    Args:
        ledger: the steps.
        starts: the step at which each atom begins, then the number of steps.
    """

    def __init__(self, ledger: Ledger, starts: Sequence[int]) -> None:
        self._starts, self._sizes, self._adds_up = starts, ledger.sizes, ledger.adds_up
        self._workspace = ledger.workspace
        added = (made + workspace for made, workspace in zip(ledger.makes, ledger.workspace, strict=True))
        self._added = list(accumulate(added, initial=0)) if ledger.adds_up else []
        self._arrivals, self._departures = ledger.deltas.arrivals, ledger.deltas.departures
        self._parts = ledger.deltas.parts
        self.reset(0)

    def reset(self, atom: int) -> None:
        """Empty the window and let it begin at an atom."""
        self.first = self.end = atom
        self._live = self._offset = self._weights = 0
        self._read: dict[int, int] = {}
        self._fullest: deque[tuple[int, int]] = deque()  # (step, bytes without the offset), falling

    @property
    def footprint(self) -> int:
        """Bytes of the window, 0 if it is empty."""
        if self._adds_up:
            return self._weights + self._added[self._starts[self.end]] - self._added[self._starts[self.first]]
        return self._weights + self._fullest[0][1] + self._offset if self._fullest else 0

    def extend(self) -> None:
        """Take in the atom behind the window."""
        begin, fullest = self._starts[self.first], self._fullest
        for step in range(self._starts[self.end], self._starts[self.end + 1]):
            since, live, enters, weights, gone, links = self._arrivals[step]
            if since < begin:
                for previous, size, read in links:
                    if previous >= begin:
                        break
                    live += size
                    enters += size
                    weights += read
            self._offset += enters
            self._weights += weights
            if self._parts[step]:
                self._add_parts(step, 1)
            workspace = self._workspace[step]
            held = self._live + live
            here = held + workspace - self._offset
            while fullest and fullest[-1][1] <= here:
                fullest.pop()
            fullest.append((step, here))
            self._live = held - gone
        self.end += 1

    def shrink(self) -> None:
        """Leave out the first atom."""
        end = self._starts[self.end]
        for step in range(self._starts[self.first], self._starts[self.first + 1]):
            until, live, weights, links = self._departures[step]
            if until >= end:
                for following, size, read in links:
                    if following < end:
                        break
                    live += size
                    weights += read
            self._live -= live
            self._offset -= live
            self._weights -= weights
            if self._parts[step]:
                self._add_parts(step, -1)
            if self._fullest and self._fullest[0][0] == step:
                self._fullest.popleft()
        self.first += 1

    def _add_parts(self, step: int, sign: int) -> None:
        for weight, size in self._parts[step]:
            whole, before = self._sizes[weight], self._read.get(weight, 0)
            self._read[weight] = before + sign * size
            self._weights += min(whole, before + sign * size) - min(whole, before)


@dataclass(frozen=True)
class FarthestReach:
    """Partitions that each take as many atoms as a limit allows.

    Attributes:
        starts: the first atom of each partition, then the number of atoms.
        footprints: of each; only a single atom may exceed the limit.
        rejected: the bytes of each but the last with the atom behind it.
    """

    starts: list[int]
    footprints: list[int]
    rejected: list[int]

    def __len__(self) -> int:
        return len(self.footprints)


class Stretches:
    """Questions about stretches of atoms of one ledger; the answers are kept, as claims ask the same ones again."""

    def __init__(self, ledger: Ledger, starts: Sequence[int]) -> None:
        self.ledger, self.starts, self.count = ledger, starts, len(starts) - 1
        self.window = Window(ledger, starts)
        self._swept: dict[int, FarthestReach] = {}
        self._earliest: dict[int, list[int]] = {}
        self.alone = [self.footprint(atom, atom + 1) for atom in range(self.count)]

    def footprint(self, first: int, end: int) -> int:
        """Bytes of the atoms [first, end)."""
        self.window.reset(first)
        while self.window.end < end:
            self.window.extend()
        return self.window.footprint

    def sweep(self, limit: int) -> FarthestReach:
        """Fill one partition after another; one pass.

        Args:
            limit: of all partitions.
        """
        if limit not in self._swept:
            self._swept[limit] = self._sweep(limit)
        return self._swept[limit]

    def _sweep(self, limit: int) -> FarthestReach:
        window, starts = self.window, [0]
        footprints: list[int] = []
        rejected: list[int] = []
        window.reset(0)
        held = 0
        for atom in range(self.count):
            window.extend()
            grown = window.footprint
            if grown > limit and window.end - window.first > 1:
                starts.append(atom)
                footprints.append(held)
                rejected.append(grown)
                window.reset(atom)
                window.extend()
                grown = window.footprint
            held = grown
        if self.count:
            starts.append(self.count)
            footprints.append(held)
        return FarthestReach(starts, footprints, rejected)

    def smallest_maximum(self, count: int, budget: int, guesses: Sequence[int] = ()) -> int:
        """The least limit under which ``count`` partitions hold all atoms; those above ``budget`` are left out of it.

        A logarithm of passes: a limit that fails does so until the least footprint that it rejected. Two for a guess
        that is right.
        """
        low = max((size for size in self.alone if size <= budget), default=0)
        high = max(low, sum(self.alone))
        tries = [limit for guess in guesses for limit in (guess, guess - 1)][::-1]
        while low < high:
            middle = (low + high) // 2
            if tries:
                middle = min(max(tries.pop(), low), high - 1)
            found = self.sweep(middle)
            if len(found) <= count:
                high = max([low, *(size for size in found.footprints if size <= middle)])
            else:
                low = min(found.rejected)
        return high

    def earliest(self, limit: int) -> list[int]:
        """For each end the least first atom of a stretch within the limit; the last atom if that alone exceeds it."""
        if limit not in self._earliest:
            self._earliest[limit] = self._earliest_within(limit)
        return self._earliest[limit]

    def _earliest_within(self, limit: int) -> list[int]:
        window = self.window
        window.reset(0)
        found = [0]
        for _ in range(self.count):
            window.extend()
            while window.footprint > limit and window.end - window.first > 1:
                window.shrink()
            found.append(window.first)
        return found


def farthest(stretches: Stretches, limits: Sequence[int], widest: int) -> list[int]:
    """How far devices of different limits get one after another: the end of each in atoms, until all are held.

    Args:
        limits: of each device in its order; one that cannot take the next atom is left out.
        widest: an atom above it may be alone on any device.
    """
    ends: list[int] = []
    start, count, window = 0, stretches.count, stretches.window
    for limit in limits:
        if start == count:
            break
        window.reset(start)
        end = start
        while end < count:
            window.extend()
            if window.footprint > limit and not (end == start and window.footprint > widest):
                break
            end += 1
        ends.append(end)
        start = end
    return ends
