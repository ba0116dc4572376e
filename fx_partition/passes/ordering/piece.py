"""A piece of a graph for the search over orders: some hundred atoms at most, each set of atoms a bit mask.

Terms
-----
piece
    Atoms that are planned alone; other atoms have run before (they are *done*) or run later. The piece receives the
    values that done atoms made, and keeps values that later atoms touch to the end.
group
    A set of atoms of the piece that one partition runs, in trace order.
after
    The atoms of the piece that run in later groups.

The footprint of a group is the one of `chain`: its weights plus the most bytes resident at one of its steps.

Before: a `Graph` (the chain as lists) and the atoms ``[7, 9, 10]``.
After: a `Piece` whose atoms are the bits 0, 1, 2, ascending in trace order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import pairwise

from ..partitioner.chain import Chain

# The most footprints in the cache.
_KNOWN = 1 << 17

Steps = list[tuple[tuple[int, ...], int]]  # for an atom: (values touched, scratch bytes) of each step


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits of a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _subset_sums(sizes: list[int]) -> list[int]:
    """Return the sum of each subset of some sizes, by the mask of the subset."""
    sums = [0]
    for size in sizes:
        sums += [total + size for total in sums]
    return sums


class Graph:
    """A chain as lists, atom by atom.

    Attributes:
        predecessors: for each atom the atoms that must run before it.
        steps: the steps of each atom.
        touched: for each atom the distinct values that it touches and that have bytes, in the order of touch.
        reads: for each atom the bytes that it touches of each weight.
        size, maker, returned: for each value its bytes, its atom (-1: the caller), and whether the graph returns it.
        touchers: the number of atoms that touch each value.
        weight_bytes: the bytes of each weight.
    """

    def __init__(self, chain: Chain, predecessors: Sequence[Sequence[int]]) -> None:
        self.predecessors = predecessors
        self.size: list[int] = chain.value_bytes.tolist()
        self.returned: list[int] = chain.value_returned.tolist()
        self.weight_bytes: list[int] = chain.weight_bytes.tolist()
        self.steps: list[Steps] = []
        self.touched: list[list[int]] = []
        self.reads: list[dict[int, int]] = []
        self.maker = [-1] * len(self.size)
        self.touchers = [0] * len(self.size)
        starts, scratch = chain.atom_start.tolist(), chain.workspace.tolist()
        row, values = chain.touch_start.tolist(), chain.touch_value.tolist()
        weight_row, ids = chain.weight_start.tolist(), chain.weight_id.tolist()
        parts, defined = chain.weight_touch_bytes.tolist(), chain.value_def.tolist()
        for atom, (i, j) in enumerate(pairwise(starts)):
            steps = [(tuple(v for v in values[row[t] : row[t + 1]] if self.size[v]), scratch[t]) for t in range(i, j)]
            self.steps.append(steps)
            self.touched.append(list(dict.fromkeys(v for touched, _ in self.steps[-1] for v in touched)))
            for v in self.touched[-1]:
                self.touchers[v] += 1
                if i <= defined[v] < j:
                    self.maker[v] = atom
            read: dict[int, int] = {}
            for at in range(weight_row[i], weight_row[j]):
                read[ids[at]] = read.get(ids[at], 0) + parts[at]
            self.reads.append({w: min(number, self.weight_bytes[w]) for w, number in read.items() if number})

    def piece(self, atoms: Sequence[int], budget: int, later: Callable[[int, int], bool]) -> Piece:
        """Return the piece of ascending ``atoms``.

        Args:
            atoms: the atoms. An atom between two of them must be one of them, or done.
            budget: the bytes of one device.
            later: returns whether later atoms touch a value, from its number and the number of its users in the piece.
        """
        at = {atom: i for i, atom in enumerate(atoms)}
        number: dict[int, int] = {}
        users: list[int] = []
        for i, atom in enumerate(atoms):
            for v in self.touched[atom]:
                if v not in number:
                    number[v] = len(users)
                    users.append(0)
                users[number[v]] |= 1 << i
        values = [
            (self.size[v], at.get(self.maker[v], -1), mask, bool(self.returned[v]) or later(v, mask.bit_count()))
            for v, mask in zip(number, users, strict=True)
        ]
        return Piece(
            [[at[p] for p in self.predecessors[atom] if p in at] for atom in atoms],
            [self.reads[atom] for atom in atoms],
            self.weight_bytes,
            values,
            [[(tuple(number[v] for v in touched), extra) for touched, extra in self.steps[atom]] for atom in atoms],
            budget,
        )


class Piece:
    """A planning problem of ``n`` atoms.

    Attributes:
        predecessors, successors: those of each atom, as lists.
        needs, feeds: the same as masks.
        reads: for each atom the bytes that it touches of each weight.
        readers: for each weight the mask of its readers.
        values: (bytes, making atom or -1, mask of the atoms that touch it, whether it is kept to the end).
        touched: for each atom the values that it touches.
        own: for each atom the most bytes that one of its steps touches and allocates.
    """

    def __init__(
        self,
        predecessors: list[list[int]],
        reads: list[dict[int, int]],
        weight_bytes: list[int],
        values: list[tuple[int, int, int, bool]],
        steps: list[Steps],
        budget: int,
    ) -> None:
        self.n = n = len(predecessors)
        self.full = (1 << n) - 1
        self.budget = budget
        self.predecessors, self.reads, self.values, self.steps = predecessors, reads, values, steps
        self.weight_bytes = weight_bytes
        self.successors: list[list[int]] = [[] for _ in range(n)]
        for atom, before in enumerate(predecessors):
            for p in before:
                self.successors[p].append(atom)
        self.needs = [sum(1 << p for p in found) for found in predecessors]
        self.feeds = [sum(1 << s for s in found) for found in self.successors]
        self.readers: dict[int, int] = {}
        partly = set()
        for atom, read in enumerate(reads):
            for w, number in read.items():
                self.readers[w] = self.readers.get(w, 0) | 1 << atom
                if number < weight_bytes[w]:
                    partly.add(w)
        bit = {w: 1 << i for i, w in enumerate(w for w in self.readers if w not in partly)}
        self._whole = [sum(bit[w] for w in read if w in bit) for read in reads]
        self._parts = [[(w, number) for w, number in read.items() if w in partly] for read in reads]
        self._bytes_of_bit = [weight_bytes[w] for w in bit]
        # Sums of eight weights at a time.
        self._sums = [_subset_sums(self._bytes_of_bit[i : i + 8]) for i in range(0, len(bit), 8)]
        self._size = [size for size, _, _, _ in values]
        # A value with bit n is never freed: it is kept. A value without a maker in the piece comes from outside.
        self._users = [mask | kept << n for _, _, mask, kept in values]
        self._maker = [1 << maker if maker >= 0 else 0 for _, maker, _, _ in values]
        self._known: dict[tuple[int, int], int] = {}
        self._groups: dict[int, tuple[int, list[int]]] = {}
        self.touched = [list(dict.fromkeys(v for vs, _ in found for v in vs)) for found in steps]
        self.own = [max(extra + sum(self._size[v] for v in vs) for vs, extra in found) for found in steps]
        self._near = [0] * n  # for each atom those that touch one of its values
        for atom, found in enumerate(self.touched):
            for v in found:
                self._near[atom] |= values[v][2]
        # For each step: its values, the bytes of those that the atom makes there, its scratch memory.
        self._rows: list[list[tuple[tuple[int, ...], int, int]]] = []
        for atom, of_atom in enumerate(steps):
            seen: set[int] = set()
            rows = []
            for vs, extra in of_atom:
                rows.append((vs, sum(self._size[v] for v in vs if values[v][1] == atom and v not in seen), extra))
                seen.update(vs)
            self._rows.append(rows)

    def weights(self, members: Sequence[int]) -> int:
        """Return the bytes of the weights that some atoms read."""
        union, parts = 0, False
        for atom in members:
            union |= self._whole[atom]
            parts = parts or bool(self._parts[atom])
        total = 0
        for sums in self._sums:
            total += sums[union & 255]
            union >>= 8
        if parts:
            held: dict[int, int] = {}
            for atom in members:
                for w, number in self._parts[atom]:
                    held[w] = min(held.get(w, 0) + number, self.weight_bytes[w])
            total += sum(held.values())
        return total

    def footprint(self, members: Sequence[int], group: int, after: int) -> int:
        """Return the bytes of a group; ``members`` are ascending, ``group`` is their mask, ``after`` runs later."""
        near = 0
        for atom in members:
            near |= self._near[atom]
        key = (group, after & near)
        total = self._known.get(key)
        if total is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            total = self._known[key] = self.weights(members) + self._peak(members, group, after)
        return total

    def footprint_of(self, group: int, after: int) -> int:
        """Return the bytes of a group that is given as a mask; cached, for groups that are asked for often."""
        found = self._groups.get(group)
        if found is None:
            if len(self._groups) >= _KNOWN:
                self._groups.clear()
            members = list(bits(group))
            near = 0
            for atom in members:
                near |= self._near[atom]
            found = self._groups[group] = (near, members)
        total = self._known.get((group, after & found[0]))
        return self.footprint(found[1], group, after) if total is None else total

    def _peak(self, members: Sequence[int], group: int, after: int) -> int:
        """Return the most bytes resident at a step of a group."""
        last: dict[int, int] = {}
        rows: list[tuple[tuple[int, ...], int, int]] = []
        for atom in members:
            for row in self._rows[atom]:
                here = len(rows)
                for v in row[0]:
                    last[v] = here
                rows.append(row)
        gone = [0] * len(rows)
        after |= 1 << self.n
        size, maker, users = self._size, self._maker, self._users
        live = peak = 0
        for v, step in last.items():
            if not maker[v] & group:
                live += size[v]
            if not users[v] & after:
                gone[step] += size[v]
        for (_, made, extra), freed in zip(rows, gone, strict=True):
            live += made
            if live + extra > peak:
                peak = live + extra
            live -= freed
        return peak

    def least(self, members: Sequence[int]) -> int:
        """Return a lower bound of the footprint of a group, whatever runs later: its weights plus its largest step."""
        return self.weights(members) + max([self.own[atom] for atom in members])

    def least_largest(self) -> int:
        """Return a lower bound of the largest group of any plan, where an atom that alone exceeds the budget is free.

        A group has at least the bytes of each of its atoms, unless that atom may be such a one.
        """
        atoms = range(self.n)
        never_alone = (a for a in atoms if self.footprint([a], 1 << a, self.full & ~(1 << a)) <= self.budget)
        return max((self.least([atom]) for atom in never_alone), default=0)

    def closures(self) -> tuple[list[int], list[int]]:
        """Return, for each atom, the masks of all atoms that must run before it and of all that must run after it."""
        before, behind = [0] * self.n, [0] * self.n
        for atom, found in enumerate(self.predecessors):
            for p in found:
                before[atom] |= before[p] | 1 << p
        for atom in range(self.n - 1, -1, -1):
            for s in self.successors[atom]:
                behind[atom] |= behind[s] | 1 << s
        return before, behind

    def within(self, group: int, after: int) -> tuple[Piece, list[int]]:
        """Return some atoms as a piece, and their numbers in this one; the atoms in ``after`` run later."""
        members = list(bits(group))
        at = {atom: i for i, atom in enumerate(members)}
        number = {v: i for i, v in enumerate(dict.fromkeys(v for atom in members for v in self.touched[atom]))}
        values = []
        for v in number:
            size, maker, users, kept = self.values[v]
            here = sum(1 << at[atom] for atom in bits(users & group))
            values.append((size, at.get(maker, -1), here, kept or bool(users & after)))
        piece = Piece(
            [[at[p] for p in self.predecessors[atom] if p in at] for atom in members],
            [self.reads[atom] for atom in members],
            self.weight_bytes,
            values,
            [[(tuple(number[v] for v in vs), extra) for vs, extra in self.steps[atom]] for atom in members],
            self.budget,
        )
        return piece, members

    def under(self, budget: int) -> Piece:
        """Return the same piece with another budget."""
        other = copy(self)
        other.budget = budget
        return other
