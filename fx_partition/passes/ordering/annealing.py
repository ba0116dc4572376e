"""Moves of atoms between the groups of a plan until all of them are within a budget: the overflow is annealed.

A move takes one atom to another group, with those that must go along: what it needs and runs later than the target, or
what needs it and runs earlier. Half of the moves start in a group that is too large. The overflow of all groups, and a
little of their footprints, is what falls; it may rise while the temperature is high, in three cycles of cooling
(S. Kirkpatrick et al., "Optimization by Simulated Annealing", Science 1983).

Before (groups of a piece; the budget is two weights)::

    [a1 b1 a2] [b2]

After: ``[a1 a2] [b1 b2]``, by moving b1 to the right.

The random numbers are seeded and the moves are counted, so that the same groups give the same answer everywhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from .piece import Piece, bits

_SMALL = 0.02  # of a byte of overflow: what a byte within the budget counts


def anneal(piece: Piece, groups: Sequence[int], budget: int, moves: int, rng: random.Random) -> list[int] | None:
    """The groups with all footprints within ``budget``, empty ones left out; None if so many moves do not get there.

    Args:
        piece: whose atoms the groups hold, all of them.
        groups: in the order in which they run; they may be too large.
        budget: bytes of a group; one atom that is too large for the piece's own budget may be alone.
        moves: how many are tried.
        rng: a source of numbers that is seeded.
    """
    state = _Annealing(piece, groups, budget)
    scale = max(piece.own, default=1) or 1
    closure = rng.choice((2, 4))
    temperature = 0.0
    for move in range(moves):
        if not state.overflow:
            break
        if move % 32 == 0:
            temperature = 0.6 * scale * 0.03 ** (3 * move / moves % 1)
        found = state.propose(rng, closure)
        if found is None:
            continue
        gain, change = found
        if gain <= 0 or rng.random() < math.exp(-gain / temperature):
            state.accept(change)
    return [group for group in state.groups if group] if not state.overflow else None


def merged_away(groups: Sequence[int], place: int) -> list[int]:
    """One group fewer: the one at ``place`` is shared out over its neighbours, in trace order."""
    if place == 0:
        return [groups[0] | groups[1], *groups[2:]]
    if place == len(groups) - 1:
        return [*groups[:-2], groups[-2] | groups[-1]]
    members = list(bits(groups[place]))
    early = sum(1 << atom for atom in members[: len(members) // 2])
    late = groups[place] & ~early
    return [*groups[: place - 1], groups[place - 1] | early, groups[place + 1] | late, *groups[place + 2 :]]


_Change = tuple[dict[int, int], dict[int, int], dict[int, int], int, set[int]]


class _Annealing:
    """Groups, what runs after each, and their footprints."""

    def __init__(self, piece: Piece, groups: Sequence[int], budget: int) -> None:
        self._piece = piece
        self._budget = budget
        self.groups = list(groups)
        self._at = {atom: p for p, group in enumerate(groups) for atom in bits(group)}
        self._atoms = sorted(self._at)
        self._after = [0] * len(self.groups)
        later = 0
        for p in range(len(self.groups) - 1, -1, -1):
            self._after[p] = later
            later |= self.groups[p]
        self._known: dict[tuple[int, int], int] = {}
        self._size = [self._footprint(g, a) for g, a in zip(self.groups, self._after, strict=True)]
        self.overflow = sum(map(self._over, self._size))
        self._users = [0] * piece.n  # of each atom all that touch one of its values
        for atom, touched in enumerate(piece.touched):
            for v in touched:
                self._users[atom] |= piece.values[v][2]

    def _over(self, size: int) -> int:
        return max(size - self._budget, 0)

    def _footprint(self, group: int, after: int) -> int:
        size = self._known.get((group, after))
        if size is None:
            members = list(bits(group))
            size = self._piece.footprint(members, group, after) if group else 0
            if len(members) == 1 and size > self._piece.budget:
                size = 0
            self._known[group, after] = size
        return size

    def propose(self, rng: random.Random, closure: int) -> tuple[float, _Change] | None:
        """A move of at most ``closure`` atoms and what it adds to the cost; None where the draw gives none."""
        at, groups, piece = self._at, self.groups, self._piece
        if rng.random() < 0.5:
            large = [p for p, size in enumerate(self._size) if size > self._budget]
            atom = rng.choice(list(bits(groups[rng.choice(large)])))
        else:
            atom = rng.choice(self._atoms)
        here = at[atom]
        if piece.reads[atom] and rng.random() < 0.25:  # to where its weight is
            weight = next(iter(piece.reads[atom]))
            target = at[rng.choice(list(bits(piece.readers[weight])))]
        elif rng.random() < 0.8:
            target = here + rng.choice((-1, 1))
        else:
            target = rng.randrange(len(groups))
        if target == here or not 0 <= target < len(groups):
            return None
        moved = self._with_it(atom, target, closure)
        return None if moved is None else self._weigh(moved, target)

    def _with_it(self, atom: int, target: int, closure: int) -> set[int] | None:
        """The atom and what must go along to ``target``; None if these are too many."""
        at = self._at
        earlier = target < at[atom]
        beside = self._piece.predecessors if earlier else self._piece.successors
        moved, stack = {atom}, [atom]
        while stack:
            for other in beside[stack.pop()]:
                if other not in moved and (at[other] > target if earlier else at[other] < target):
                    if len(moved) == closure:
                        return None
                    moved.add(other)
                    stack.append(other)
        return moved

    def _weigh(self, moved: set[int], target: int) -> tuple[float, _Change]:
        groups: dict[int, int] = {}
        after: dict[int, int] = {}
        users = 0
        for atom in moved:
            source, bit = self._at[atom], 1 << atom
            groups[source] = groups.get(source, self.groups[source]) & ~bit
            groups[target] = groups.get(target, self.groups[target]) | bit
            for p in range(min(source, target), max(source, target)):
                after[p] = after.get(p, self._after[p]) ^ bit
            users |= self._users[atom]
        sizes = {}
        gain = 0.0
        for p in sorted(groups.keys() | after.keys()):
            if p in groups or self.groups[p] & users:
                size = sizes[p] = self._footprint(groups.get(p, self.groups[p]), after.get(p, self._after[p]))
                gain += self._over(size) - self._over(self._size[p]) + _SMALL * (size - self._size[p])
        return gain, (groups, after, sizes, target, moved)

    def accept(self, change: _Change) -> None:
        groups, after, sizes, target, moved = change
        for atom in moved:
            self._at[atom] = target
        for p, group in groups.items():
            self.groups[p] = group
        for p, later in after.items():
            self._after[p] = later
        for p, size in sizes.items():
            self.overflow += self._over(size) - self._over(self._size[p])
            self._size[p] = size
