"""Sequential aggregation: fill a partition until the next atom does not fit, then begin another.

Since a footprint never falls when an interval grows, taking the farthest reach each time gives the fewest
partitions that any plan over this order can have. It does not balance them and ignores the bytes that cross
boundaries; see `dp.py`.

A set [i, j) of atoms is *feasible* if its footprint is within the budget or it is a single atom. An atom
whose footprint exceeds the budget is *oversize*: it is a partition by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from .chain import Chain, IntArray
from .contraction import Contraction, contract


def greedy(chain: Chain, budget: int) -> list[int]:
    """Return the farthest-reach plan: boundaries as atom indices ``[0, ..., num_atoms]``, in O(n + e).

    Example: three atoms of 3 bytes each that share nothing, budget 6: ``[0, 2, 3]``.

    Raises:
        ValueError: if ``budget`` is negative.
    """
    check_budget(budget)
    return FarthestReachSolver(contract(chain)).run(budget).boundaries


def fewest_over(chain: Chain, budget: int) -> int:
    """Return the fewest partitions of any plan over a chain's own order."""
    return len(FarthestReachSolver(contract(chain)).run(budget).footprints)


def oversize_atoms(chain: Chain, budget: int) -> list[int]:
    """Return the atoms whose own footprint exceeds ``budget``, ascending.

    Raises:
        ValueError: if ``budget`` is negative.
    """
    check_budget(budget)
    oversize: list[int] = np.flatnonzero(contract(chain).alone > budget).tolist()
    return oversize


def check_budget(budget: int) -> None:
    """Raise a ValueError if ``budget`` is negative."""
    if budget < 0:
        raise ValueError(f"a budget must be a number of bytes, and not negative: {budget}")


@dataclass(frozen=True)
class FarthestReach:
    """One pass of farthest reach under a limit.

    Attributes:
        boundaries: ``[0, ..., num_atoms]``; where a pass was stopped, the list ends with the start of the partition
            that was not filled.
        footprints: bytes of each partition; one that exceeds the limit is a single atom.
        rejected: bytes of partition i with the first atom that did not fit, for each but the last partition.
    """

    boundaries: list[int]
    footprints: list[int]
    rejected: list[int]

    def largest(self, limit: int) -> int:
        """Return the largest footprint within ``limit``, 0 if there is none."""
        return max((size for size in self.footprints if size <= limit), default=0)


class FarthestReachSolver:
    """Runs farthest reach over one contraction, forwards and backwards, after it has turned all arrays into lists."""

    def __init__(self, contraction: Contraction) -> None:
        n = contraction.num_atoms
        inner_end = contraction.num_inner_links
        source, target = contraction.link_from[:inner_end], contraction.link_to[:inner_end]
        size = contraction.link_bytes[:inner_end]
        inner = np.zeros(n, dtype=np.int64)
        np.add.at(inner, target, size)
        rows = np.searchsorted(target, np.arange(n + 1))

        self.contraction = contraction
        self._num_atoms = n
        self._alone: list[int] = contraction.alone.tolist()
        self._stays: list[int] = contraction.stays.tolist()
        # The recurrence of `contraction.py` for a window that contains the origins of all links to an atom; and the
        # first of these origins, which tells whether a window does.
        self._gain: list[int] = (contraction.enters - inner).tolist()
        self._own: list[int] = (contraction.alone - inner).tolist()
        self._hold: list[int] = (contraction.stays - inner).tolist()
        origin = np.full(n, n, dtype=np.int64)
        linked = rows[:-1] < rows[1:]
        origin[linked] = source[rows[:-1][linked]]
        self._origin: list[int] = origin.tolist()
        self._row: list[int] = rows.tolist()
        self._link_from: list[int] = source.tolist()
        self._link_bytes: list[int] = size.tolist()
        # For the move at the start of a window: the bytes of an atom that no later one shares; its links by their
        # origin, farthest target first; and that farthest target.
        order = np.lexsort((-target, source))
        out = np.searchsorted(source[order], np.arange(n + 1))
        leaves = contraction.stays.copy()
        np.subtract.at(leaves, source, size)
        farthest = np.full(n, -1, dtype=np.int64)
        linked = out[:-1] < out[1:]
        farthest[linked] = target[order][out[:-1][linked]]
        self._leaves: list[int] = leaves.tolist()
        self._farthest: list[int] = farthest.tolist()
        self._out: list[int] = out.tolist()
        self._out_to: list[int] = target[order].tolist()
        self._out_bytes: list[int] = size[order].tolist()

    def run(self, limit: int, most: int | None = None) -> FarthestReach:
        """Run farthest reach under ``limit`` bytes; stop at rejection ``most``: ``most`` partitions do not suffice."""
        n = self._num_atoms
        boundaries, footprints, rejected = [0], list[int](), list[int]()
        if n == 0:
            return FarthestReach(boundaries, footprints, rejected)
        alone, stays, row = self._alone, self._stays, self._row
        link_from, link_bytes = self._link_from, self._link_bytes
        start, peak, held = 0, alone[0], stays[0]
        columns = zip(self._gain, self._own, self._hold, self._origin, strict=True)
        for atom, (gain, own, hold, origin) in enumerate(islice(columns, 1, None), 1):
            grown = peak + gain
            at_atom = held + own
            held += hold
            if origin < start:
                # Some links come from before the window, which does not hold their bytes yet.
                outer = 0
                for link in range(row[atom], row[atom + 1]):
                    if link_from[link] >= start:
                        break
                    outer += link_bytes[link]
                grown += outer
                at_atom += outer
                held += outer
            if at_atom > grown:
                grown = at_atom
            if grown > limit:
                boundaries.append(atom)
                footprints.append(peak)
                rejected.append(grown)
                if len(rejected) == most:
                    return FarthestReach(boundaries, footprints, rejected)
                start, peak, held = atom, alone[atom], stays[atom]
            else:
                peak = grown
        boundaries.append(n)
        footprints.append(peak)
        return FarthestReach(boundaries, footprints, rejected)

    def reach_back(self, limit: int, largest: int | None = None) -> IntArray:
        """Return, for each position, the smallest start of a partition under ``limit`` that ends there.

        It is 0 for position 0. A single atom may always be a partition, unless its bytes are above ``limit`` and not
        above ``largest``: then the position itself stands for "none". This is `Window` written out in one loop, because
        planners call it again and again.
        """
        leaves, farthest = self._leaves, self._farthest
        out, out_to, out_bytes = self._out, self._out_to, self._out_bytes
        row, link_from, link_bytes = self._row, self._link_from, self._link_bytes
        start = held = offset = front = 0
        atoms, peaks = list[int](), list[int]()  # from ``front`` on: atoms, and footprints at them, strictly falling
        starts = [0]
        columns = zip(self._gain, self._own, self._hold, self._origin, strict=True)
        for atom, (gain, own, hold, origin) in enumerate(columns):
            outer = 0
            if origin < start:
                for link in range(row[atom], row[atom + 1]):
                    if link_from[link] >= start:
                        break
                    outer += link_bytes[link]
            offset += gain + outer
            peak = held + own + outer - offset
            while len(peaks) > front and peaks[-1] <= peak:
                peaks.pop()
                atoms.pop()
            peaks.append(peak)
            atoms.append(atom)
            held += hold + outer
            while peaks[front] + offset > limit and start < atom:
                gone = leaves[start]
                if farthest[start] > atom:
                    for link in range(out[start], out[start + 1]):
                        if out_to[link] <= atom:
                            break
                        gone += out_bytes[link]
                held -= gone
                offset -= gone
                if atoms[front] == start:
                    front += 1
                start += 1
            barred = largest is not None and limit < peaks[front] + offset <= largest
            starts.append(atom + 1 if barred else start)
        return np.array(starts, dtype=np.int64)
