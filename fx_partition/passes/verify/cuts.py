"""The fewest bytes that cross boundaries, over all plans of an order with a number of partitions and a limit.

A layered programme: ``cost[j][b]`` is the least for the first b atoms in j partitions, and the next partition [a, b)
adds the bytes that it receives. When the atom behind b is taken in, what it touches for the first time since an atom p
is received by every partition that begins behind p: an addition to all later a, kept in a tree of minima. Where that
is none of the a, or all of them, the least of those within reach is kept in a queue.

Only the layers that a plan can be in are kept: b atoms need at least so many partitions, and so do the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .windows import Stretches

_NEVER = 1 << 62  # more than any sum of bytes
_Array = npt.NDArray[np.int64]


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
        # {(the atom that may receive, the one that touched before): bytes}
        links: dict[tuple[int, int], int] = {}
        for step, touched in enumerate(ledger.activations):
            for memory, previous in zip(touched, ledger.previous[step], strict=True):
                if ledger.made_at[memory] in (-1, step) or not ledger.sizes[memory]:
                    continue
                link = atom_of[step], atom_of[previous]
                if link[1] < link[0]:
                    links[link] = links.get(link, 0) + ledger.sizes[memory]
        rows = [(at, since, links[at, since]) for at, since in sorted(links)]
        self._links = _Links(rows, stretches.count)
        # What the atom before touched is received by the partition that begins here, and by no later one.
        self._far = _Links([row for row in rows if row[1] < row[0] - 1], stretches.count)
        self._near = [links.get((atom, atom - 1), 0) for atom in range(stretches.count)]

    def fewest(self, count: int, limit: int) -> int | None:
        """The fewest bytes received in a plan of ``count`` partitions within ``limit``; None if there is no plan."""
        return self.fewest_of_each(range(count, count + 1), limit)[0]

    def fewest_of_each(self, counts: range, limit: int) -> list[int | None]:
        """The same for several numbers of partitions, one after another.

        O((atoms + touches) log(atoms)) for each layer that the last of them leaves open beyond the fewest partitions.
        """
        n, most = self._stretches.count, counts[-1]
        if any(limit < size <= self._budget for size in self._stretches.alone):
            return [None for _ in counts]
        earliest = np.array(self._stretches.earliest(limit), dtype=np.int64)
        high, low = [0], [n]  # where a boundary can be, by the partitions before and behind it
        for _ in range(most):
            high.append(int(np.searchsorted(earliest, high[-1], side="right")) - 1)
            low.append(int(earliest[low[-1]]))
        low.reverse()
        if low[0] > 0:
            return [None for _ in counts]
        cost = np.zeros(1, dtype=np.int64)
        found = [int(n > 0) * _NEVER]
        for layer in range(1, most + 1):
            cost = self._next(cost, (low[layer - 1], high[layer - 1]), (low[layer], high[layer]), earliest)
            found.append(int(cost[-1]) if high[layer] == n else _NEVER)
        return [found[count] if found[count] < _NEVER else None for count in counts]

    def _next(self, cost: _Array, before: tuple[int, int], here: tuple[int, int], earliest: _Array) -> _Array:
        """The costs at the places of one layer, both ends included, from those of the layer before."""
        (first, last), (low, high) = before, here
        early = min(last, low - 1) + 1 - first
        entry = cost.copy()  # of the places before this layer: what the partition up to its first place receives, too
        if early > 0:
            entry[:early] += self._received(first, first + early - 1, low)
        begins = np.maximum(earliest[low : high + 1], first).tolist()
        links = slice(self._far.row[low], self._far.row[high])
        since, at, size = self._far.since[links], self._far.at[links], self._far.size[links]
        if np.any((since >= first) & (since < last)):
            pairs = list(zip(since.tolist(), size.tolist(), strict=True))
            return self._by_tree(entry.tolist(), before, low, begins, pairs)
        for_all = np.zeros(high - low + 1, dtype=np.int64)
        np.add.at(for_all, at[since < first] + 1 - low, size[since < first])
        return self._by_queue(entry.tolist(), before, low, begins, np.cumsum(for_all).tolist())

    def _received(self, first: int, last: int, end: int) -> _Array:
        """What the partitions [a, end) receive, for each a from ``first`` to ``last``, which is not behind ``end``."""
        links = slice(self._links.row[first], self._links.row[end])
        since, size = self._links.since[links], self._links.size[links]
        change = np.zeros(last - first + 2, dtype=np.int64)
        np.add.at(change, np.clip(since + 1 - first, 0, last + 1 - first), size)
        np.subtract.at(change, np.minimum(self._links.at[links], last) + 1 - first, size)
        return np.asarray(np.cumsum(change)[:-1])

    def _by_queue(
        self, entry: list[int], before: tuple[int, int], low: int, begins: list[int], for_all: list[int]
    ) -> _Array:
        first, last = before
        queue: deque[tuple[int, int]] = deque()
        found, behind = [], first
        for b, begin in enumerate(begins, low):
            while behind < b and behind <= last:
                number = entry[behind - first]
                if behind >= low:
                    number += self._near[behind] - for_all[behind - low]
                while queue and queue[-1][1] >= number:
                    queue.pop()
                queue.append((behind, number))
                behind += 1
            while queue and queue[0][0] < begin:
                queue.popleft()
            found.append(min(queue[0][1] + for_all[b - low], _NEVER) if queue else _NEVER)
        return np.array(found, dtype=np.int64)

    def _by_tree(
        self, entry: list[int], before: tuple[int, int], low: int, begins: list[int], links: list[tuple[int, int]]
    ) -> _Array:
        first, last = before
        tree = _Minima([number if a < low else _NEVER for a, number in enumerate(entry, first)])
        row, for_all = self._far.row, 0
        found = []
        for b, begin in enumerate(begins, low):
            at = b - 1
            if at >= low:
                if at <= last:
                    tree.put(at - first, entry[at - first] + self._near[at] - for_all)
                for since, size in links[row[at] - row[low] : row[b] - row[low]]:
                    if since < first:
                        for_all += size
                    elif since < last:
                        tree.add_from(since + 1 - first, size)
            found.append(min(tree.least_from(begin - first) + for_all, _NEVER) if begin <= last else _NEVER)
        return np.array(found, dtype=np.int64)

    def fewest_spread(self, limits: Sequence[int]) -> int | None:
        """The same for devices of these limits in their order, of which each takes a stretch that may be empty.

        O((atoms + touches) log(atoms)) for each device.
        """
        n, alone = self._stretches.count, self._stretches.alone
        far, near = self._far, self._near
        since, size = far.since.tolist(), far.size.tolist()
        before = [0] + [_NEVER] * n
        for limit in limits:
            earliest = self._stretches.earliest(limit)
            tree = _Minima([_NEVER] * (n + 1))
            found = list(before)
            for b in range(1, n + 1):
                tree.put(b - 1, before[b - 1] + near[b - 1])
                for link in range(far.row[b - 1], far.row[b]):
                    tree.add_from(since[link] + 1, size[link])
                if alone[b - 1] <= limit or alone[b - 1] > self._budget:
                    found[b] = min(found[b], tree.least_from(earliest[b]))
            before = found
        return before[n] if before[n] < _NEVER else None


class _Links:
    """What may be received: the atom that does, the one that touched it before, the bytes.

    Attributes:
        at, since, size: a number each, ascending.
        row: of each atom the place of its first, then their number.
    """

    def __init__(self, rows: Sequence[tuple[int, int, int]], count: int) -> None:
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        self.at, self.since, self.size = columns
        self.row: list[int] = np.searchsorted(self.at, np.arange(count + 1)).tolist()


class _Minima:
    """Numbers at places, of which all from one place on are added to or asked for the least; a logarithm each.

    A node holds the least below it with what was added to it as a whole, and without what was added above it.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._half = half = 1 << len(numbers).bit_length()
        self._least = [_NEVER] * half + list(numbers) + [_NEVER] * (half - len(numbers))
        self._added = [0] * (2 * half)
        for at in range(half - 1, 0, -1):
            self._least[at] = min(self._least[2 * at], self._least[2 * at + 1])

    def put(self, place: int, number: int) -> None:
        least, added = self._least, self._added
        at = place + self._half
        above = at >> 1
        while above:
            number -= added[above]
            above >>= 1
        least[at] = number
        while at > 1:
            other = least[at ^ 1]
            at >>= 1
            number = (number if number < other else other) + added[at]
            least[at] = number

    def add_from(self, place: int, number: int) -> None:
        least, added = self._least, self._added
        at = place + self._half
        least[at] += number
        while at > 1:
            if not at & 1:
                least[at + 1] += number
                added[at + 1] += number
            mine, other = least[at], least[at ^ 1]
            at >>= 1
            least[at] = (mine if mine < other else other) + added[at]

    def least_from(self, place: int) -> int:
        least, added = self._least, self._added
        at = place + self._half
        found = least[at]
        while at > 1:
            if not at & 1 and least[at + 1] < found:
                found = least[at + 1]
            at >>= 1
            found += added[at]
        return found
