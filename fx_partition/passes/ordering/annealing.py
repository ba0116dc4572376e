"""Move atoms between the groups of a plan, by simulated annealing, until no group exceeds the budget.

A move takes one atom to another group, with the atoms that must go along: predecessors that run later than the target,
or successors that run earlier. An exchange with a neighbour also takes one atom back in the same way. Half of the moves
start in a group that is too large. The cost is the overflow of all groups plus a small share of their footprints. It
may rise while the temperature is high, in cycles of cooling (S. Kirkpatrick et al., "Optimization by Simulated
Annealing", Science 1983).

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

_SMALL = 0.02  # the cost of a byte within the budget, relative to a byte of overflow
_HOT, _COLD = 0.3, 0.03  # temperatures of a cycle: the first as a share of the largest step, the last of the first
_TOGETHER = 3  # the most atoms of a move
_EXCHANGED = 0.6  # the share of the moves to a neighbour that take an atom back
_CYCLE = 40_000  # the most moves of a cycle


def anneal(piece: Piece, groups: Sequence[int], budget: int, moves: int, rng: random.Random) -> list[int] | None:
    """Return groups that are all within ``budget``, without empty ones; None if the moves do not suffice.

    Args:
        piece: the piece; the groups hold all of its atoms.
        groups: the groups in the order in which they run; they may be too large.
        budget: the most bytes of a group; an atom that is too large for the piece's own budget may be alone.
        moves: the number of moves to try.
        rng: a source of numbers that is seeded.
    """
    state = _Annealing(piece, groups)
    return state.groups_held() if state.run(budget, moves, moves // 3, rng) else None


def squeeze(piece: Piece, groups: Sequence[int], moves: int, rng: random.Random) -> list[int]:
    """Return a plan of no more groups whose largest group is as small as the moves can make it; never a worse one.

    The budget is always one byte less than the largest of the best plan so far. No move is tried once a single atom
    shows that none can help.
    """
    best, left = list(groups), moves
    state, least = _Annealing(piece, groups), piece.least_largest()
    cycle = max(1, min(_CYCLE, moves // 2))
    while left > 0 and state.largest() > least:
        tried = state.run(state.largest() - 1, left, cycle, rng)
        if not tried:
            break
        best, left = state.groups_held(), left - tried
    return best


def merged_away(groups: Sequence[int], place: int) -> list[int]:
    """Return one group fewer: the atoms of the group at ``place`` go to its neighbours, in trace order."""
    if place == 0:
        return [groups[0] | groups[1], *groups[2:]]
    if place == len(groups) - 1:
        return [*groups[:-2], groups[-2] | groups[-1]]
    members = list(bits(groups[place]))
    early = sum(1 << atom for atom in members[: len(members) // 2])
    late = groups[place] & ~early
    return [*groups[: place - 1], groups[place - 1] | early, groups[place + 1] | late, *groups[place + 2 :]]


_Changed = tuple[int, int, int]  # the position of a group, its atoms, the atoms that run after it


class _Annealing:
    """The groups, the atoms that run after each, and their footprints."""

    def __init__(self, piece: Piece, groups: Sequence[int]) -> None:
        self._piece = piece
        self._groups = list(groups)
        self._at = [0] * piece.n
        for p, group in enumerate(groups):
            for atom in bits(group):
                self._at[atom] = p
        self._after = [0] * len(self._groups)
        later = 0
        for p in range(len(self._groups) - 1, -1, -1):
            self._after[p] = later
            later |= self._groups[p]
        self._size = [self._footprint(g, a) for g, a in zip(self._groups, self._after, strict=True)]
        self._before, self._behind = piece.closures()
        self._others = [list(bits(piece.readers[next(iter(read))])) if read else [] for read in piece.reads]
        self._moved = 0

    def largest(self) -> int:
        return max(self._size, default=0)

    def groups_held(self) -> list[int]:
        return [group for group in self._groups if group]

    def _footprint(self, group: int, after: int) -> int:
        if not group:
            return 0
        size = self._piece.footprint_of(group, after)
        return size if size <= self._piece.budget or group & (group - 1) else 0

    def run(self, budget: int, moves: int, cycle: int, rng: random.Random) -> int:
        """Return the number of moves that brought all groups within ``budget``, at least 1; 0 if all moves failed."""
        groups, after, sizes, at = self._groups, self._after, self._size, self._at
        draw, exp, footprint = rng.random, math.exp, self._footprint
        atoms, hot = self._piece.n, _HOT * (max(self._piece.own, default=1) or 1)
        overflow = sum(max(size - budget, 0) for size in sizes)
        temperature = hot
        for move in range(moves):
            if not overflow:
                return max(move, 1)
            if self._moved % 32 == 0:
                temperature = hot * _COLD ** (self._moved % cycle / cycle)
            self._moved += 1
            if draw() < 0.5:
                large = [p for p, size in enumerate(sizes) if size > budget]
                members = list(bits(groups[large[int(draw() * len(large))]]))
                atom = members[int(draw() * len(members))]
            else:
                atom = int(draw() * atoms)
            target = self._target(atom, draw(), draw())
            if target == at[atom] or not 0 <= target < len(groups):
                continue
            moved, changed = self._change(atom, target)
            if moved.bit_count() > _TOGETHER:
                continue
            here, back = at[atom], 0
            if len(changed) == 2 and draw() < _EXCHANGED:
                back, changed = self._exchange(moved, changed, target > here, draw())
                if back & moved or back.bit_count() > _TOGETHER:
                    continue
            gain, grown = 0.0, 0
            found = [footprint(group, later) for _, group, later in changed]
            for (p, _, _), size in zip(changed, found, strict=True):
                grown += max(size - budget, 0) - max(sizes[p] - budget, 0)
                gain += _SMALL * (size - sizes[p])
            gain += grown
            if gain <= 0 or draw() < exp(-gain / temperature):
                overflow += grown
                for (p, group, later), size in zip(changed, found, strict=True):
                    groups[p], after[p], sizes[p] = group, later, size
                for other in bits(moved):
                    at[other] = target
                for other in bits(back):
                    at[other] = here
        return max(moves, 1) if not overflow else 0

    def _target(self, atom: int, kind: float, which: float) -> int:
        """Return the group to move an atom to: that of a reader of its weight, a neighbour, or any."""
        here = self._at[atom]
        others = self._others[atom]
        if kind < 0.25 and others:
            return self._at[others[int(which * len(others))]]
        if kind < 0.85:
            return here + 1 if which < 0.5 else here - 1
        return int(which * len(self._groups))

    def _change(self, atom: int, target: int) -> tuple[int, list[_Changed]]:
        """Return the atom with those that must go along to ``target``, and the changed groups in their order."""
        groups, after, here = self._groups, self._after, self._at[atom]
        if target > here:
            moved = 1 << atom | self._behind[atom] & ~after[target - 1]
            changed = [(p, groups[p] & ~moved, after[p] | moved) for p in range(here, target)]
            changed.append((target, groups[target] | moved, after[target]))
        else:
            moved = 1 << atom | self._before[atom] & after[target]
            changed = [(target, groups[target] | moved, after[target] & ~moved)]
            changed += [(p, groups[p] & ~moved, after[p] & ~moved) for p in range(target + 1, here)]
            changed.append((here, groups[here] & ~moved, after[here]))
        return moved, changed

    def _exchange(
        self, moved: int, changed: list[_Changed], to_the_right: bool, which: float
    ) -> tuple[int, list[_Changed]]:
        """Return the atoms that go back after ``moved`` went to a neighbour, and both groups; nothing if none can."""
        (left, first, behind), (right, second, rest) = changed
        others = list(bits((second if to_the_right else first) & ~moved))
        if not others:
            return 0, changed
        atom = others[int(which * len(others))]
        if to_the_right:
            back = 1 << atom | self._before[atom] & behind
            return back, [(left, first | back, behind & ~back), (right, second & ~back, rest)]
        back = 1 << atom | self._behind[atom] & first
        return back, [(left, first & ~back, behind | back), (right, second | back, rest)]
