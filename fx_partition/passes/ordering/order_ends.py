"""Improve the bound over all orders by the partitions that must run before and after some atoms.

Terms
-----
apart
    An atom and a descendant of it that no partition can hold together: it would also hold all atoms on the paths
    between them, and these exceed the budget.
head, tail
    For an atom, the fewest partitions up to the one that holds it, and from that one on, in any plan over any order.

Why two atoms are apart. A partition that holds u and a descendant v also holds the set H of all atoms that are
descendants of u and ancestors of v, and it must be within the budget. It holds the weights that H reads. A value that H
touches is resident at the steps of H from its definition in the trace (from the start if another partition makes it) to
its last user in the trace. For a user in H runs in this partition. If H makes the value, or the user is a descendant of
u, the user runs in this partition or in a later one, and then the value stays to the end.

Why heads grow. Atoms that must run before v are in its partition or in earlier ones. So the head of v is at least the
bound of v with its ancestors (`check_order_bound`), at least the head of any ancestor, and one more than the head of an
ancestor from which v is apart. The same holds for tails. So if all atoms of a set have heads above ``before`` and tails
above ``behind``, a plan has ``before`` partitions, then those of the set, then ``behind``.

Before: four atoms in a row that read the weights a, b, a, b; a partition holds one weight. After: heads 1, 2, 3, 4 and
``OrderBound(fewest=4, moment=None, before=0, behind=2)``: two partitions run after the first two atoms, whose weights
need two. For all atoms together the weights show only 2.

The time for a pair of atoms grows with the number of atoms between them, so this is for small graphs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ..partitioner.chain import Chain
from .check_order_bound import Weighed
from .order_bound import OrderBound
from .piece import bits

# For larger graphs no heads and tails are computed: up to this size it takes some tenths of a second.
MOST_ATOMS, MOST_TOUCHES = 64, 1024


def bound_with_ends(
    chain: Chain, predecessors: Sequence[Sequence[int]], budget: int, known: OrderBound
) -> OrderBound:
    """Return the known bound, or a better one by heads and tails.

    Args:
        chain: the chain in trace order.
        predecessors: for each atom the atoms that must run before it, all smaller.
        budget: the bytes of one device.
        known: the bound of `order_bound`.
    """
    if chain.num_atoms > MOST_ATOMS or len(chain.touch_value) > MOST_TOUCHES:
        return known
    ends = Ends(chain, predecessors, budget)
    best = known
    for before in sorted({head - 1 for head in ends.head}):
        for behind in sorted({tail - 1 for tail in ends.tail}):
            atoms = ends.between(before, behind)
            for moment in (None, ends.weighed.fullest(atoms)) if atoms else ():
                fewest = before + ends.weighed.fewest(atoms, moment) + behind
                if fewest > best.fewest:
                    best = OrderBound(fewest, moment, before, behind)
    return best


class Ends:
    """Heads and tails of the atoms of a chain.

    Attributes:
        head, tail: the head and the tail of each atom.
        weighed: computes bounds for atoms of the same chain.
    """

    def __init__(self, chain: Chain, predecessors: Sequence[Sequence[int]], budget: int) -> None:
        n = chain.num_atoms
        self.weighed = Weighed(chain, budget)
        successors: list[list[int]] = [[] for _ in range(n)]
        for atom, found in enumerate(predecessors):
            for p in found:
                successors[p].append(atom)
        before, behind = [0] * n, [0] * n
        for atom, found in enumerate(predecessors):
            for p in found:
                before[atom] |= before[p] | 1 << p
        for atom in reversed(range(n)):
            for s in successors[atom]:
                behind[atom] |= behind[s] | 1 << s
        between_atoms = _Between(chain, before, behind, budget)
        self.head = self._ranks(range(n), before, lambda atom, other: between_atoms.apart(other, atom))
        self.tail = self._ranks(range(n - 1, -1, -1), behind, between_atoms.apart)

    def _ranks(self, order: Sequence[int], beyond: list[int], apart: Callable[[int, int], bool]) -> list[int]:
        """Return, for each atom, the partitions from an end of the graph to its own.

        Args:
            order: the atoms, from that end on.
            beyond: for each atom the mask of those that must be nearer to that end, or as near.
            apart: returns whether no partition can hold both an atom and one of those.
        """
        rank = [1] * len(order)
        for atom in order:
            others = list(bits(beyond[atom]))
            mine = sorted([*others, atom])
            rank[atom] = max([self.fewest(mine), *(rank[other] for other in others)])
            for other in sorted(others, key=lambda o: (-rank[o], o)):
                if rank[other] < rank[atom]:
                    break
                if apart(atom, other):
                    rank[atom] = rank[other] + 1
                    break
        return rank

    def fewest(self, atoms: list[int]) -> int:
        """Return a lower bound for some atoms, by their weights alone or at their fullest moment."""
        return max(self.weighed.fewest(atoms, None), self.weighed.fewest(atoms, self.weighed.fullest(atoms)))

    def between(self, before: int, behind: int) -> list[int]:
        """Return the atoms with at least this many partitions before and after them."""
        return [
            atom for atom, ends in enumerate(zip(self.head, self.tail, strict=True))
            if ends[0] > before and ends[1] > behind
        ]  # fmt: skip


class _Between:
    """Computes lower bounds for the atoms between two atoms."""

    def __init__(self, chain: Chain, before: list[int], behind: list[int], budget: int) -> None:
        self._before, self._behind, self._budget = before, behind, budget
        self._starts: list[int] = chain.atom_start.tolist()
        self._num_steps = chain.num_steps
        self._workspace: list[int] = chain.workspace.tolist()
        self._size: list[int] = chain.value_bytes.tolist()
        self._defined: list[int] = chain.value_def.tolist()
        self._returned: list[int] = chain.value_returned.tolist()
        row, values = chain.touch_start.tolist(), chain.touch_value.tolist()
        self._touches: list[list[tuple[int, int]]] = [[] for _ in self._size]  # of each value: (step, atom's bit)
        self._touched: list[set[int]] = []
        self._maker = [0] * len(self._size)
        self._reads: list[list[tuple[int, int]]] = []
        weight_row, reads = chain.weight_start.tolist(), (chain.weight_id.tolist(), chain.weight_touch_bytes.tolist())
        self._weight_bytes: list[int] = chain.weight_bytes.tolist()
        for atom, (first, end) in enumerate(pairwise(self._starts)):
            self._touched.append({v for v in values[row[first] : row[end]] if self._size[v]})
            for t in range(first, end):
                for v in values[row[t] : row[t + 1]]:
                    self._touches[v].append((t, 1 << atom))
                    if self._defined[v] == t:
                        self._maker[v] = 1 << atom
            i, j = weight_row[first], weight_row[end]
            self._reads.append(list(zip(reads[0][i:j], reads[1][i:j], strict=True)))
        self._known: dict[tuple[int, int], bool] = {}

    def apart(self, first: int, last: int) -> bool:
        """Return whether no partition can hold both an atom and a descendant of it."""
        known = self._known.get((first, last))
        if known is None:
            hull = 1 << first | 1 << last | self._behind[first] & self._before[last]
            known = self._known[first, last] = self._least(hull, 1 << first | self._behind[first]) > self._budget
        return known

    def _least(self, hull: int, not_before: int) -> int:
        """Return the least bytes of a partition with all atoms between; ``not_before`` cannot run in an earlier one."""
        atoms = list(bits(hull))
        held: dict[int, int] = {}
        change: dict[int, int] = {}
        for atom in atoms:
            for w, number in self._reads[atom]:
                held[w] = min(self._weight_bytes[w], held.get(w, 0) + number)
        for v in set().union(*(self._touched[atom] for atom in atoms)):
            until = self._num_steps
            if not self._returned[v]:
                mine = -1 if self._maker[v] & hull else not_before
                until = next(t for t, bit in reversed(self._touches[v]) if bit & mine)
            change[self._defined[v]] = change.get(self._defined[v], 0) + self._size[v]
            change[until + 1] = change.get(until + 1, 0) - self._size[v]
        events = sorted(change)
        live = at = peak = 0
        for atom in atoms:
            for t in range(self._starts[atom], self._starts[atom + 1]):
                while at < len(events) and events[at] <= t:
                    live += change[events[at]]
                    at += 1
                peak = max(peak, live + self._workspace[t])
        return sum(held.values()) + peak
