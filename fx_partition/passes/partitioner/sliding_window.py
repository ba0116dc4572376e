"""A sliding window over a chain, for planners: it knows only the bytes of its interval.

Every move costs amortised O(degree of the atom moved). `interval_footprint` lists what an interval holds.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from .contraction import Contraction


class Window:
    """The footprint of a window [first, last) of atoms that grows at its end and shrinks at its start.

    Each move changes the footprints at all other atoms of the window by one and the same amount (see
    `contraction.py`). So the atoms' footprints are kept relative to one shared offset, in a deque that holds
    only those that no later one reaches: its front is the window's footprint.

    Example::

        window = Window(contract(chain))
        while window.last < chain.num_atoms and window.footprint <= budget:
            window.extend()
    """

    def __init__(self, contraction: Contraction) -> None:
        n = contraction.num_atoms
        inner_end = contraction.num_inner_links
        source, target = contraction.link_from[:inner_end], contraction.link_to[:inner_end]
        size = contraction.link_bytes[:inner_end]

        self._num_atoms = n
        self._alone: list[int] = contraction.alone.tolist()
        self._enters: list[int] = contraction.enters.tolist()
        self._stays: list[int] = contraction.stays.tolist()
        # Links by their target, nearest origin last; and by their origin, farthest target last.
        self._in = np.searchsorted(target, np.arange(n + 1)).tolist()
        self._in_from: list[int] = source.tolist()
        self._in_bytes: list[int] = size.tolist()
        order = np.argsort(source, kind="stable")
        self._out = np.searchsorted(source[order], np.arange(n + 1)).tolist()
        self._out_to: list[int] = target[order].tolist()
        self._out_bytes: list[int] = size[order].tolist()
        self.reset(0)

    def reset(self, atom: int) -> None:
        """Empty the window and let it begin at ``atom``."""
        assert 0 <= atom <= self._num_atoms
        self.first = self.last = atom
        self._held = 0
        self._offset = 0
        self._peaks: deque[tuple[int, int]] = deque()  # (atom, footprint at it - offset), strictly falling

    @property
    def footprint(self) -> int:
        """The window's bytes; 0 if it is empty."""
        return self._peaks[0][1] + self._offset if self._peaks else 0

    def extend(self) -> None:
        """Append the next atom."""
        atom, first = self.last, self.first
        assert atom < self._num_atoms
        inner = 0
        origins, sizes = self._in_from, self._in_bytes
        for link in range(self._in[atom + 1] - 1, self._in[atom] - 1, -1):
            if origins[link] < first:
                break
            inner += sizes[link]
        held = self._held - inner
        self._offset += self._enters[atom] - inner
        peak = held + self._alone[atom] - self._offset
        peaks = self._peaks
        while peaks and peaks[-1][1] <= peak:
            peaks.pop()
        peaks.append((atom, peak))
        self._held = held + self._stays[atom]
        self.last = atom + 1

    def shrink(self) -> None:
        """Drop the first atom."""
        atom, last = self.first, self.last
        assert atom < last
        gone = self._stays[atom]
        targets, sizes = self._out_to, self._out_bytes
        for link in range(self._out[atom], self._out[atom + 1]):
            if targets[link] >= last:
                break
            gone -= sizes[link]
        self._held -= gone
        self._offset -= gone
        if self._peaks[0][0] == atom:
            self._peaks.popleft()
        self.first = atom + 1
