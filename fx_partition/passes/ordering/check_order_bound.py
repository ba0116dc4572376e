"""Check a lower bound on the partitions of every order, which one moment of the trace shows.

Terms
-----
regular atom
    An atom whose weights, touched values and scratch memory together are within the budget: alone it always fits.
bare atom
    An atom whose weights plus the touched and allocated bytes of its largest step exceed the budget: it is alone in
    every plan.
moment
    A step t of the trace. A value is *live* at it if a step of a regular atom up to t makes it, and a later step
    touches it or the graph returns it.

Why it holds. Let G be a partition of a plan over any order, with a regular atom in it, so that it is within the budget
C. Its steps run in trace order. A value that G makes and that is live at t is resident from its definition at least to
the last step of G up to t. For its last user in the trace comes after t: if that user runs in G, it runs later; if it
runs in another partition, which must be a later one, the value stays to the end. So at the step of G that makes the
last of its live values, all of them are resident, plus the other bytes that this step touches and allocates. A
partition that makes none of them has at least one step. With ``rest`` the smallest of these other bytes over all
steps, ::

    C >= weights(G) + (live bytes that G makes) + rest

and the sum over the partitions that have a regular atom, with every weight in at least one of them, is ::

    k >= (weights + live bytes) / (C - rest)  +  number of bare atoms

Without a moment: each weight of w bytes that a regular atom reads whole takes a share of at least w / (C - r) of its
partition, where r is the least that a step of one of its readers touches and allocates. These shares add up to at most
the number of partitions.

All of this also holds for a subset of the atoms: for what these make, read and touch, and the partitions that have one
of them.

`order_bound` finds the moment that gives the largest bound, and `order_ends` the atoms. `verify.all_orders` computes
the bound again with separate code.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from ..partitioner.chain import Chain

# Shares of a partition are whole numbers of a unit: sums of fractions are slow, and floating point may round up.
_UNIT = 1 << 48


class Weighed:
    """Computes lower bounds for sets of atoms of a chain in trace order.

    Args:
        chain: a chain that does not add up.
        budget: the bytes of one device.
    """

    def __init__(self, chain: Chain, budget: int) -> None:
        assert not chain.adds_up
        self._budget = budget
        starts, workspace, size = chain.atom_start.tolist(), chain.workspace.tolist(), chain.value_bytes.tolist()
        row, values = chain.touch_start.tolist(), chain.touch_value.tolist()
        self._size: list[int] = size
        self._touched = [values[a:b] for a, b in pairwise(row)]
        self._at_step = [
            sum([size[v] for v in found]) + extra for found, extra in zip(self._touched, workspace, strict=True)
        ]
        self._full: list[int] = chain.weight_bytes.tolist()
        self._defined: list[int] = chain.value_def.tolist()
        self._until = [0] * len(size)
        for t, found in enumerate(self._touched):
            for v in found:
                self._until[v] = t
        for v, returned in enumerate(chain.value_returned.tolist()):
            if returned:
                self._until[v] = chain.num_steps
        weight_row, ids = chain.weight_start.tolist(), chain.weight_id.tolist()
        parts = chain.weight_touch_bytes.tolist()
        self._bare: list[bool] = []
        self._regular: list[bool] = []
        self._reads: list[dict[int, int]] = []
        self._makes: list[list[int]] = []
        self._largest: list[int] = []
        for first, end in pairwise(starts):
            read: dict[int, int] = {}
            for i in range(weight_row[first], weight_row[end]):
                read[ids[i]] = min(self._full[ids[i]], read.get(ids[i], 0) + parts[i])
            weights, largest = sum(read.values()), max(self._at_step[first:end])
            touched = set(values[row[first] : row[end]])
            everything = sum([size[v] for v in touched])
            self._regular.append(weights + everything + max(workspace[first:end]) <= budget)
            self._bare.append(weights + largest > budget)
            self._reads.append(read)
            self._makes.append([v for v in touched if first <= self._defined[v] < end])
            self._largest.append(largest)

    def fewest(self, atoms: Iterable[int], moment: int | None) -> int:
        """Return a lower bound on the partitions that hold one of these atoms, by a moment or by the weights alone."""
        atoms = list(atoms)
        bare = sum([self._bare[atom] for atom in atoms])
        regular = [atom for atom in atoms if self._regular[atom]]
        if not regular:
            return max(bare, int(bool(atoms)))
        if moment is None:
            return bare + max(1, -(-self._by_weights(regular) // _UNIT))
        held: dict[int, int] = {}
        live: set[int] = set()
        rest = self._budget
        for atom in regular:
            for w, number in self._reads[atom].items():
                held[w] = min(self._full[w], held.get(w, 0) + number)
            live.update([v for v in self._makes[atom] if self._defined[v] <= moment < self._until[v]])
            rest = min(rest, self._largest[atom])
        for t in {self._defined[v] for v in live}:
            rest = min(rest, self._at_step[t] - sum([self._size[v] for v in self._touched[t] if v in live]))
        total = sum(held.values()) + sum([self._size[v] for v in live])
        return bare + max(1, -(-total // (self._budget - rest)) if rest < self._budget else 0)

    def fullest(self, atoms: Iterable[int]) -> int | None:
        """Return the first moment with the most live bytes that regular atoms of these make; None if none are live."""
        change: dict[int, int] = {}
        for atom in atoms:
            for v in self._makes[atom] if self._regular[atom] else ():
                change[self._defined[v]] = change.get(self._defined[v], 0) + self._size[v]
                change[self._until[v]] = change.get(self._until[v], 0) - self._size[v]
        live = most = 0
        moment = None
        for t in sorted(change):
            live += change[t]
            if live > most:
                most, moment = live, t
        return moment

    def _by_weights(self, regular: list[int]) -> int:
        """Return the shares of partitions that weights take which one of these atoms reads whole, rounded down."""
        least: dict[int, int] = {}
        for atom in regular:
            for w, number in self._reads[atom].items():
                if number == self._full[w] > 0:
                    least[w] = min(least.get(w, self._budget), self._largest[atom])
        room: dict[int, int] = {}
        for w, rest in least.items():
            room[self._budget - rest] = room.get(self._budget - rest, 0) + self._full[w]
        return sum(number * _UNIT // left for left, number in room.items())
