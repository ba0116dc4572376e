"""Find the fewest bytes between partitions, for a given number of partitions under a limit.

Terms
-----
layer, reach
    The positions of the boundaries; see `boundary_ranges.py`.
received(q, p)
    The bytes of the distinct values that an atom before q defines and that [q, p) touches: over the links
    (u, w) of `contraction.py` with u < q <= w < p, the sum of ``link_cut``.

Algorithm
---------
    best(l, p) = min over q in layer l - 1 with reach[p] <= q < p of best(l - 1, q) + received(q, p)

While p moves right through layer l, a link (u, w) begins to count when p passes w, for the q in (u, w]. Links with w
before the layer count for all p of the layer. Of the others, a link with u before all q counts for all of them, and a
link with u among them counts for a suffix: a q beyond w is not a candidate yet when p passes w (q < p), and enters with
its own cost when p passes it. So the algorithm only adds to a suffix and takes the minimum of a suffix: a segment tree
does both in O(log n) for each link and position. Layers without links of the last kind need no tree. Small layers are
one matrix of all (p, q), because whole-array work is faster.

Layers overlap only where there are more partitions than needed, so all layers together have O((s + 1) n) positions and
O((s + 1) e) links, for s partitions more than the fewest.
"""

from __future__ import annotations

import numpy as np

from fx_partition.common.segment_tree import SegmentTree

from .boundary_ranges import Layers
from .chain import IntArray
from .contraction import Contraction
from .repeated_partitions import choose

# Up to this number of pairs (p, q) a layer is solved as a matrix. Measured: beyond it the tree is as fast.
_SMALL = 1 << 15
_NEVER = 1 << 62  # more than any sum of bytes


class CutTable:
    """The solved tables of the algorithm above.

    Attributes:
        num_partitions: the number of partitions of each plan, empty ones included.
        cut: the fewest bytes received.

    Example: four atoms that share nothing, layers of two partitions under any limit: ``cut == 0`` and
    ``boundaries() == [0, 1, 4]``.
    """

    def __init__(self, contraction: Contraction, layers: Layers) -> None:
        self._layers = layers
        self.num_partitions = len(layers.reach)
        counts = (contraction.link_cut > 0) & (contraction.link_to < contraction.num_atoms)
        self._from = contraction.link_from[counts]
        self._to = contraction.link_to[counts]  # ascending
        self._bytes = contraction.link_cut[counts]
        self._row: list[int] = np.searchsorted(self._to, np.arange(contraction.num_atoms + 2)).tolist()
        self._best: list[IntArray] = [np.zeros(1, dtype=np.int64)]
        for layer in range(1, len(layers.low)):
            self._best.append(self._solve(layer))
        self.cut = int(self._best[-1][-1])

    def _received(self, first: int, last: int, p: int) -> IntArray:
        """Return received(q, p) for the q in ``first .. last``, all of them at most p."""
        links = slice(self._row[first], self._row[p])
        change = np.zeros(last - first + 2, dtype=np.int64)
        size = self._bytes[links]
        np.add.at(change, np.minimum(np.maximum(self._from[links] + 1, first), last + 1) - first, size)
        np.subtract.at(change, np.minimum(self._to[links], last) + 1 - first, size)
        return np.cumsum(change)[:-1]

    def _solve(self, layer: int) -> IntArray:
        """Return ``best`` on the positions of ``layer``, from the layer before."""
        first, last = self._layers.low[layer - 1], self._layers.high[layer - 1]
        low, high = self._layers.low[layer], self._layers.high[layer]
        before = self._best[layer - 1]
        # No earlier start than `first` is in the layer before; `last + 1` stands for none.
        reach = np.clip(self._layers.reach[layer - 1][low : high + 1], first, last + 1) - first
        links = slice(self._row[low], self._row[high])
        apart = last < low and not bool(np.any((self._from[links] >= first) & (self._from[links] < last)))
        if apart:
            best = self._apart(before, first, last, low, high, reach)
        elif (high - low + 1) * (last - first + 1) <= _SMALL:
            best = self._small(before, first, last, low, high, reach)
        else:
            best = self._large(before, first, last, low, high, reach)
        if self._layers.empty and last >= low:  # first <= low and last <= high, so these positions are in both
            best[: last + 1 - low] = np.minimum(best[: last + 1 - low], before[low - first :])
        return best

    def _apart(self, before: IntArray, first: int, last: int, low: int, high: int, reach: IntArray) -> IntArray:
        """Solve a layer where all q are before all p, and each link that begins to count does so for every q."""
        costs = np.append(before + self._received(first, last, low), _NEVER)
        suffix_least = np.minimum.accumulate(costs[::-1])[::-1]
        return np.asarray(suffix_least[reach] + self._common(first, low, high), dtype=np.int64)

    def _common(self, first: int, low: int, high: int) -> IntArray:
        """Return, for each p, the bytes of the links to low .. p - 1 that come from before all q."""
        links = slice(self._row[low], self._row[high])
        everywhere = self._from[links] < first
        change = np.zeros(high - low + 1, dtype=np.int64)
        np.add.at(change, self._to[links][everywhere] + 1 - low, self._bytes[links][everywhere])
        return np.cumsum(change)

    def _small(self, before: IntArray, first: int, last: int, low: int, high: int, reach: IntArray) -> IntArray:
        """Solve a layer by a matrix with a row for each p and a column for each q."""
        change = np.zeros((high - low + 1, last - first + 2), dtype=np.int64)
        links = slice(self._row[low], self._row[high])
        source, target, size = self._from[links], self._to[links], self._bytes[links]
        row = target + 1 - low
        np.add.at(change, (row, np.minimum(np.maximum(source + 1, first), last + 1) - first), size)
        np.subtract.at(change, (row, np.minimum(target, last) + 1 - first), size)
        received = np.cumsum(np.cumsum(change, axis=0), axis=1)[:, :-1]
        # Links to before the layer count from its first p on, for the q before all p; other q are later than the links.
        early = min(last, low)
        received[:, : early + 1 - first] += self._received(first, early, low)
        column = np.arange(last - first + 1)
        allowed = (column >= reach[:, None]) & (column < np.arange(low - first, high - first + 1)[:, None])
        return np.asarray(np.where(allowed, received + before, _NEVER).min(axis=1), dtype=np.int64)

    def _large(self, before: IntArray, first: int, last: int, low: int, high: int, reach: IntArray) -> IntArray:
        """Solve a layer by a segment tree over the q; a q at or beyond the first p enters when p has passed it."""
        common: list[int] = self._common(first, low, high).tolist()
        early = min(last, low - 1)
        costs = before[: early + 1 - first] + self._received(first, early, low) if early >= first else before[:0]
        late: list[int] = before[early + 1 - first :].tolist()
        tree = SegmentTree([*costs.tolist(), *[_NEVER] * len(late)])
        links = slice(self._row[low], self._row[high])
        source: list[int] = self._from[links].tolist()
        size: list[int] = self._bytes[links].tolist()
        least = []
        for p, q in zip(range(low, high + 1), reach.tolist(), strict=True):
            if p > low:
                passed = p - 1
                if early < passed <= last:  # less the part of `common` that is of links to atoms before this q
                    tree.set(passed - first, late[passed - early - 1] - common[passed - low])
                for link in range(self._row[passed] - links.start, self._row[p] - links.start):
                    if first <= source[link] < last:
                        tree.add_from(source[link] + 1 - first, size[link])
            least.append(tree.min_from(q) + common[p - low] if q <= last - first else _NEVER)
        return np.array(least, dtype=np.int64)

    def boundaries(self, keys: IntArray | None = None) -> list[int]:
        """Return the boundaries of a plan with the fewest bytes.

        Without ``keys`` its last boundary is leftmost, then the one before it, and so on; with the ``keys`` of the
        atoms it is one with fewer distinct partitions if there is one (`repeated_partitions.choose`). Boundaries that
        coincide are empty partitions, where the layers allow them.
        """

        def before(layer: int, p: int) -> list[int]:
            starts: list[int] = self.before(layer, p).tolist()
            return starts

        return choose(before, self.num_partitions, self._layers.high[-1], keys)

    def before(self, layer: int, p: int) -> IntArray:
        """Return, ascending, where boundary ``layer - 1`` can be in plans with the fewest bytes if ``layer`` is at p.

        Recomputes received(q, p) for the q of one layer.
        """
        first, last = self._layers.low[layer - 1], self._layers.high[layer - 1]
        wanted = self._best[layer][p - self._layers.low[layer]]
        last = min(last, p if self._layers.empty else p - 1)
        costs = self._best[layer - 1][: last + 1 - first] + self._received(first, last, p)
        reach = max(int(self._layers.reach[layer - 1][p]), first)
        costs[: reach - first] = _NEVER
        if self._layers.empty and last == p:
            costs[-1] = self._best[layer - 1][p - first]
        found = np.flatnonzero(costs == wanted) + first
        assert len(found)
        return found
