"""Fewest bytes between partitions, among the plans with the fewest partitions under a limit.

Terms
-----
limit
    The largest footprint a partition may have; one single atom is always admitted.
usable position
    A place between atoms where some plan of k partitions has a boundary, k being the fewest under the limit.
    Then (fewest partitions left of it) + (fewest right of it) = k, so the position's index among the
    boundaries, its *layer*, is the same in all such plans. Layer l is the range ``low[l] .. high[l]`` of
    positions: ``high`` is where farthest reach from the left ends, ``low`` where it ends from the right. The
    ranges do not overlap.
received(q, p)
    The bytes of the distinct values that an atom before q defines and that [q, p) touches: over the links
    (u, w) of `contraction.py` with u < q <= w < p, the sum of ``link_cut``.

Algorithm
---------
    best(p) = min over q in the layer before p's, from which p can be reached, of best(q) + received(q, p)

p is reachable from q iff q >= ``reach_back[p]``. While p moves right through layer l, a link (u, w) begins to
count when p passes w, for the q in (u, w]. Three kinds of links to tell apart, each link being of one kind
for one layer:

- w before ``low[l]``: counts for all p, so it belongs to the layer before: a difference array over all
  positions;
- w in layer l and u before all q of the layer before: counts for all q, so it is one running sum over p;
- w in layer l and u among them: a suffix of the q, an addition to a segment tree.

Links whose (u, w] holds no usable q never count. That is O((n + e) log n) in all; a layer without links of
the third kind needs no tree.
"""

from __future__ import annotations

import numpy as np

from .chain import IntArray
from .contraction import Contraction
from .segment_tree import SegmentTree


def fewest_cut(contraction: Contraction, high: list[int], reach_back: IntArray) -> list[int]:
    """The boundaries with the fewest bytes received; among equals the last one is leftmost, and so on.

    Args:
        contraction: the chain.
        high: the boundaries of farthest reach from the left, under the limit.
        reach_back: ``(num_atoms + 1,)`` the least start of a partition that ends at a position, under the
            limit.
    """
    return _LayeredCut(contraction, high, reach_back).boundaries()


class _LayeredCut:
    """The tables of the algorithm above."""

    def __init__(self, contraction: Contraction, high: list[int], reach_back: IntArray) -> None:
        self._high = high
        self._reach_back = reach_back
        self._low = high[-1:]
        for _ in high[1:]:
            self._low.append(int(reach_back[self._low[-1]]))
        self._low.reverse()
        assert self._low[0] == 0 and all(low <= up for low, up in zip(self._low, high, strict=True))
        self._prepare(contraction)

        self._best = np.zeros(contraction.num_atoms + 1, dtype=np.int64)
        for layer in range(1, len(high)):
            self._solve(layer)

    def _prepare(self, contraction: Contraction) -> None:
        """Sort the links into the three kinds."""
        n = contraction.num_atoms
        counts = (contraction.link_cut > 0) & (contraction.link_to < n)
        source, target, size = (
            a[counts] for a in (contraction.link_from, contraction.link_to, contraction.link_cut)
        )
        low, high = np.array(self._low), np.array(self._high)
        # The first layer whose successor begins after w: in it and later ones, every p is beyond w.
        layer = np.searchsorted(low[1:], target, side="right")

        change = np.zeros(n + 2, dtype=np.int64)
        np.add.at(change, np.maximum(source + 1, low[layer]), size)
        np.subtract.at(change, target + 1, size)
        self._common = np.cumsum(change)[: n + 1]  # received(q, low of the next layer), at usable q

        moving = (layer > 0) & (target < high[layer])
        source, target, size, layer = source[moving], target[moving], size[moving], layer[moving]
        everywhere = source < low[layer - 1]
        whole = np.zeros(n + 1, dtype=np.int64)
        np.add.at(whole, target[everywhere] + 1, size[everywhere])
        self._whole = np.cumsum(whole)  # differences of it are the second kind, by p

        part = ~everywhere & (source < high[layer - 1])
        self._part_at = target[part] + 1  # the p from which on it counts, ascending
        self._part_from = source[part] + 1  # the q from which on it counts
        self._part_bytes = size[part]
        self._part_row: list[int] = np.searchsorted(layer[part], np.arange(len(low) + 1)).tolist()

    def _solve(self, layer: int) -> None:
        """``best`` on the positions of ``layer``, from the layer before."""
        before, last = self._low[layer - 1], self._high[layer - 1]
        low, high = self._low[layer], self._high[layer]
        costs = self._best[before : last + 1] + self._common[before : last + 1]
        reach = np.maximum(self._reach_back[low : high + 1], before) - before
        shared = self._whole[low : high + 1] - self._whole[low]
        part, part_end = self._part_row[layer], self._part_row[layer + 1]
        if part == part_end:
            suffix_least = np.minimum.accumulate(costs[::-1])[::-1]
            self._best[low : high + 1] = suffix_least[reach] + shared
            return
        tree = SegmentTree(costs.tolist())
        at: list[int] = self._part_at[part:part_end].tolist()
        start: list[int] = (self._part_from[part:part_end] - before).tolist()
        size: list[int] = self._part_bytes[part:part_end].tolist()
        least = []
        link = 0
        for position, q in enumerate(reach.tolist(), low):
            while link < len(at) and at[link] <= position:
                tree.add_from(start[link], size[link])
                link += 1
            least.append(tree.min_from(q))
        self._best[low : high + 1] = np.array(least) + shared

    def boundaries(self) -> list[int]:
        """Walk back from the end; each step recomputes received(q, p) for one p and the q of one layer."""
        position = self._high[-1]
        result = [position]
        for layer in range(len(self._high) - 1, 0, -1):
            before, last = self._low[layer - 1], self._high[layer - 1]
            received = self._common[before : last + 1] + self._whole[position] - self._whole[self._low[layer]]
            part = self._part_row[layer]
            part_end = part + int(
                np.searchsorted(self._part_at[part : self._part_row[layer + 1]], position, side="right")
            )
            added = np.zeros(last + 1 - before, dtype=np.int64)
            np.add.at(added, self._part_from[part:part_end] - before, self._part_bytes[part:part_end])
            costs = self._best[before : last + 1] + received + np.cumsum(added)
            first = max(int(self._reach_back[position]), before)
            chosen = first + int(np.argmin(costs[first - before :]))
            assert costs[chosen - before] == self._best[position]
            position = chosen
            result.append(position)
        result.reverse()
        return result
