"""A sliding window over a chain, and the footprint of one interval in full detail.

``Window`` is for planners: it knows only the bytes, and every move costs amortised O(degree of the atom
moved). ``interval`` is for reports: it computes one interval from the definition in `chain.py`, and lists its
contents.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .chain import Chain, IntArray
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


@dataclass(frozen=True)
class IntervalFootprint:
    """The contents of an interval [i, j) of steps; every size is in bytes.

    Attributes:
        weight: weights that the interval touches.
        activation, workspace: resident values and scratch memory at the peak step; where the chain adds up, those of
            all steps, and then the peak step is the last.
        own: the largest sum, at one step, of scratch memory and of the values that the interval defines.
        total: weight + activation + workspace, the footprint.
        peak_step: the first step at which the footprint is reached.
        recv_bytes: distinct values that a step before i defines and that the interval touches.
        send_bytes: distinct values that the interval defines and that a step from j on touches.
        resident: ids of the values resident at the peak step, ascending.
        weights: (id, counted bytes) of each weight that the interval touches, ascending.
    """

    weight: int
    activation: int
    workspace: int
    own: int
    total: int
    peak_step: int
    recv_bytes: int
    send_bytes: int
    resident: tuple[int, ...]
    weights: tuple[tuple[int, int], ...]


def interval(chain: Chain, i: int, j: int) -> IntervalFootprint:
    """Return the footprint of the steps [i, j), in O(their number + their touches).

    The first call for a chain also looks at all of its touches.

    Raises:
        ValueError: if [i, j) is empty or not within the chain.
    """
    if not 0 <= i < j <= chain.num_steps:
        raise ValueError(f"not an interval of the {chain.num_steps} steps: [{i}, {j})")
    touched: dict[int, int] = {}  # value -> its last touch in [i, j)
    for step in range(i, j):
        for value in chain.touch_value[chain.touch_start[step] : chain.touch_start[step + 1]].tolist():
            touched[value] = step

    change = [0] * (j - i + 1)
    own_change = [0] * (j - i + 1)
    spans: dict[int, tuple[int, int]] = {}
    received = sent = 0
    ids = np.array(list(touched), dtype=np.int64)
    columns = (chain.value_def, chain.value_bytes, chain.value_returned, last_touches(chain))
    for (value, last), defined, size, returned, last_of_all in zip(
        touched.items(), *(column[ids].tolist() for column in columns), strict=True
    ):
        begin, later = max(defined, i), last_of_all >= j
        end = j if later or returned else last + 1
        spans[value] = (begin, end)
        change[begin - i] += size
        change[end - i] -= size
        if defined >= i:
            own_change[begin - i] += size
            own_change[end - i] -= size
        received += size if 0 <= defined < i else 0
        sent += size if defined >= i and later else 0

    peak_step, activation, workspace, live = i, -1, 0, 0
    own = own_live = 0
    for step in range(i, j):
        live += change[step - i]
        own_live += own_change[step - i]
        scratch = int(chain.workspace[step])
        own = max(own, own_live + scratch)
        if live + scratch > activation + workspace:
            peak_step, activation, workspace = step, live, scratch
    resident = [value for value, (begin, end) in spans.items() if begin <= peak_step < end]
    if chain.adds_up:
        resident = [value for value in touched if i <= chain.value_def[value]]
        peak_step, activation = j - 1, int(chain.value_bytes[resident].sum())
        workspace = int(chain.workspace[i:j].sum())

    rows = slice(int(chain.weight_start[i]), int(chain.weight_start[j]))
    counted: dict[int, int] = {}
    for weight, size in zip(
        chain.weight_id[rows].tolist(), chain.weight_touch_bytes[rows].tolist(), strict=True
    ):
        counted[weight] = min(int(chain.weight_bytes[weight]), counted.get(weight, 0) + size)
    weight_bytes = sum(counted.values())

    return IntervalFootprint(
        weight=weight_bytes,
        activation=activation,
        workspace=workspace,
        own=own,
        total=weight_bytes + activation + workspace,
        peak_step=peak_step,
        recv_bytes=received,
        send_bytes=sent,
        resident=tuple(sorted(resident)),
        weights=tuple(sorted(counted.items())),
    )


@lru_cache(maxsize=1)  # a report asks for every partition of one chain
def last_touches(chain: Chain) -> IntArray:
    """Return the last step that touches each value, -1 if none does."""
    last = np.full(len(chain.value_bytes), -1, dtype=np.int64)
    # Of several assignments to one element numpy keeps the last, which is the latest step.
    last[chain.touch_value] = np.repeat(np.arange(chain.num_steps), np.diff(chain.touch_start))
    return last
