"""Improve the plan of a small piece: beams first, then windows of groups are split again.

Terms
-----
window
    Some consecutive groups of a plan, as a piece.
pool
    The known plans of the fewest groups.
halves
    Two broad beams for a given number of groups, one from each end. Each runs half of the groups; the atoms between two
    of their states are the group in the middle.

1. Beams of growing breadth run forwards and backwards; exact boundaries over the order of each result improve it. Then
   halves look for one group fewer.
2. *Fewer groups*: a window is split again, in one of two ways. A beam splits it, and the result is taken if it has no
   more groups (a change that gains nothing may make a later one possible). Or the atoms of one group go to its
   neighbours, and moves have to bring all groups within the budget again (`annealing`).
3. *A smaller largest group*, for the number of groups found: moves over the whole plan under a budget of one byte less
   than the largest group, as long as they succeed; then halves under smaller budgets.

Before: a plan of 6 groups, the largest of 90 bytes.  After: a plan of 5, or of 6 with a largest group of 84 bytes;
never a worse one.

The result is deterministic: random numbers are seeded, and the effort is bounded by numbers of states and moves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from .annealing import anneal, merged_away, squeeze
from .beam import Beam, Breadth, Levels, meet
from .piece import Piece, bits

Groups = list[int]

NARROW = Breadth(width=2, inner=3, tries=3)
_WIDE = Breadth(width=4, inner=6, tries=4)
# Up to this many atoms halves take some tenths of a second.
_FEW = 64
# The breadth of halves, up to this many atoms; groups of a larger piece hold more atoms, and take longer.
_BROAD, _BROAD_ATOMS = Breadth(width=100, inner=2, tries=6, fills=300), 40
# Halves look for a largest group that is smaller by this fraction, as long as they find one.
_SHARE = 64
_ALPHAS = (0.4, 1.0, 2.0)
_SPANS = (4, 5, 6, 8, 8, 10, 12)
_MOVES = 6_000  # for one attempt


def resplit(
    piece: Piece, known: Iterable[Groups], refine: Callable[[Groups], Groups], fewest: int, effort: int
) -> list[Groups]:
    """Return the best plan found, never worse than those known; then the other plans of as few groups.

    Args:
        piece: all atoms of the graph.
        known: known plans, each a list of groups in the order in which they run.
        refine: returns a plan of other boundaries over the order of a plan; it may be worse.
        fewest: a lower bound on the groups of a plan.
        effort: about the number of moves to try for fewer groups, states of beams included; eight times as many are
            tried for a smaller largest group.
    """
    search = _Search(piece, refine, fewest)
    for groups in known:
        search.add(groups)
    search.beams(NARROW, (1.0, 0.4))
    search.beams(_WIDE, _ALPHAS)
    search.halves_of_fewer()
    search.fewer(effort)
    return [search.smaller(effort), *search.pool]


def largest(piece: Piece, groups: Groups) -> int:
    """Return the bytes of the largest group that is not an oversize atom."""
    return max(footprints(piece, groups), default=0)


def footprints(piece: Piece, groups: Groups) -> list[int]:
    """Return the bytes of each group, 0 for an oversize atom."""
    sizes, after = [], 0
    for group in reversed(groups):
        members = list(bits(group))
        size = piece.footprint(members, group, after)
        sizes.append(size if len(members) > 1 or size <= piece.budget else 0)
        after |= group
    return sizes[::-1]


class _Search:
    def __init__(self, piece: Piece, refine: Callable[[Groups], Groups], fewest: int) -> None:
        self._piece, self._refine, self._least = piece, refine, fewest
        self._rng = random.Random(0)
        self.pool: list[Groups] = []

    @property
    def _fewest(self) -> int:
        return len(self.pool[0])

    def add(self, groups: Groups) -> None:
        """Add a plan to the pool if it has the fewest groups, and they are within the budget in trace order."""
        if self.pool and (len(groups) > self._fewest or largest(self._piece, groups) > self._piece.budget):
            return
        if self.pool and len(groups) < self._fewest:
            self.pool.clear()
        if groups not in self.pool:
            self.pool.append(groups)

    def _add_refined(self, groups: Groups | None) -> None:
        if groups:
            self.add(groups)
            self.add(self._refine(groups))

    def beams(self, breadth: Breadth, alphas: tuple[float, ...]) -> None:
        """Run beams from both ends, join them, and find the best boundaries over the order of each result."""
        # One group more than the best plan: exact boundaries over its order may need one fewer.
        most = self._fewest + 1 if self.pool else self._piece.n
        runs = _from_both_ends(self._piece, breadth, alphas, most)
        self._add_refined(meet(self._piece, *runs, most))
        for levels in (*runs[0], *runs[1]):
            if groups := levels[-1].get(self._piece.full):
                self._add_refined(list(groups))

    def halves_of_fewer(self) -> None:
        """Run halves for one group fewer than the best plan has, as long as they find a plan."""
        while self._piece.n <= _FEW and self._fewest > max(self._least, 2):
            found = _halves(self._piece, self._fewest - 1)
            if found is None:
                break
            self._add_refined(found)

    def fewer(self, effort: int) -> None:
        """Look for plans of fewer groups, from three plans of the pool."""
        for _ in range(3):
            plan, left = self._rng.choice(self.pool), effort // 3
            while len(plan) > max(self._least, 2) and left > 0:
                plan, spent = self._split_window(plan)
                left -= spent
                if len(plan) < self._fewest:
                    self._add_refined(plan)
                    plan = self.pool[0]

    def _split_window(self, plan: Groups) -> tuple[Groups, int]:
        """Return the plan with one window split again, if that worked, and the effort spent."""
        rng = self._rng
        span = min(len(plan), rng.choice(_SPANS))
        first = rng.randrange(len(plan) - span + 1)
        inside, behind = plan[first : first + span], plan[first + span :]
        window, atoms = self._piece.within(sum(inside), sum(behind))
        found: Groups | None
        if span <= 6 and rng.random() < 0.5:
            spent = 100 * window.n
            found = _whole(window, Beam(window, rng.random() < 0.5).run(_WIDE, rng.uniform(0.2, 2.5), span))
        else:
            at = {atom: i for i, atom in enumerate(atoms)}
            groups = [sum(1 << at[atom] for atom in bits(group)) for group in inside]
            smallest = min(range(span), key=lambda i: groups[i].bit_count())
            away = rng.randrange(span) if rng.random() < 0.5 else smallest
            spent = _MOVES * span // 8
            found = anneal(window, merged_away(groups, away), self._piece.budget, spent, rng)
        if not found:
            return plan, spent
        back = [sum(1 << atoms[i] for i in bits(group)) for group in found]
        return [*plan[:first], *back, *plan[first + span :]], spent

    def smaller(self, effort: int) -> Groups:
        """Return the plan of the pool with the smallest largest group, improved by moves and halves."""
        piece = self._piece
        best = min(self.pool, key=lambda groups: (largest(piece, groups), groups))
        least = piece.least_largest()
        if len(best) < 2 or largest(piece, best) <= least:
            return best
        moves = 8 * effort * _BROAD_ATOMS // max(piece.n, _BROAD_ATOMS)
        best = squeeze(piece, best, moves, self._rng)
        if piece.n <= _FEW:
            best = self._by_halves(best, least)
        refined = self._refine(best)
        return refined if len(refined) == len(best) and largest(piece, refined) < largest(piece, best) else best

    def _by_halves(self, best: Groups, least: int) -> Groups:
        """Return the plan, or one of as many groups that halves find under smaller budgets; none is below ``least``."""
        piece = self._piece
        high = largest(piece, best)
        while high > max(least, 1):
            found = _halves(piece.under(high - max(high // _SHARE, 1)), len(best))
            if not found or largest(piece, found) >= high:
                break
            best, high = found, largest(piece, found)
        return best


def _halves(piece: Piece, k: int) -> Groups | None:
    """Return a plan of at most ``k`` groups within the budget of the piece, by two beams that meet."""
    share = min(1.0, _BROAD_ATOMS / piece.n)
    broad = replace(_BROAD, width=int(_BROAD.width * share**2), fills=int(_BROAD.fills * share**3))
    ahead = Beam(piece, False).run(broad, 1.0, k // 2)
    behind = Beam(piece, True).run(broad, 1.0, (k - 1) // 2)
    return meet(piece, [ahead], [behind], k)


def _from_both_ends(
    piece: Piece, breadth: Breadth, alphas: tuple[float, ...], most: int
) -> tuple[list[Levels], list[Levels]]:
    ahead, behind = Beam(piece, False), Beam(piece, True)
    return [ahead.run(breadth, a, most) for a in alphas], [behind.run(breadth, a, most) for a in alphas]


def _whole(piece: Piece, levels: Levels) -> Groups | None:
    groups = levels[-1].get(piece.full)
    return None if groups is None else list(groups)
