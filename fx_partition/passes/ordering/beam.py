"""Search the downsets of a piece with a narrow beam: grow groups that may run next, keep the most promising ones.

Terms
-----
state
    A downset (`downset_footprint`) that some groups reach, all of them within the budget. A backward beam begins at the
    end of the graph: a state is then the complement of a downset, and groups grow from the end.
fill
    A group that may run next. It grows atom by atom, first by atoms that bring few bytes: weights that it does not hold
    yet, plus values that become live, minus values that are no longer live.
estimate
    The cost of what a state leaves to later groups: weights that still have readers, bytes that cross its boundary, and
    a little for the work left.

Before (two branches a, b of two atoms each; a group holds two)::

    state {}                fills {a1}, {b1}, {a1 b1}, {a1 a2}, {b1 b2}

After: ``{a1 a2}`` leaves one branch, and ``{a1 b1}`` leaves two that cross its boundary; a beam of width one continues
with the first.

Everything is bounded by numbers of states, never by time: the same graph gives the same plan on every machine.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop
from typing import NamedTuple

from .piece import Piece, bits


@dataclass(frozen=True)
class Breadth:
    """The breadth of a beam.

    Attributes:
        width: the number of states kept after each group.
        inner: the number of partial fills of a state kept after each atom.
        tries: the number of atoms by which each partial fill may grow.
        fills: the least number of partial fills kept over all states; the first group has one state only.
    """

    width: int
    inner: int
    tries: int
    fills: int = 0


# For 0, 1, ... groups: each state with the groups that reach it, in the order in which they run.
Levels = list[dict[int, tuple[int, ...]]]


class _State(NamedTuple):
    estimate: float
    groups: tuple[int, ...]
    ready: tuple[int, ...]
    weights: int
    crossing: int
    work: int


class _Fill(NamedTuple):
    order: float  # the rank of a partial fill
    group: int
    members: tuple[int, ...]
    ready: tuple[int, ...]
    held: int  # weights, as a mask
    weights: int
    live: int
    finished: int  # bytes of the weights that have no later readers
    crossing: int  # the bytes that it adds to those that cross
    work: int


class Beam:
    """A beam over a piece in one direction.

    Args:
        piece: the piece; `run` plans all of it, or its first half.
        backwards: whether the beam begins at the end.
        gates: sets that every order passes (`gates.gates`), ascending. A group begins with all atoms up to the farthest
            gate within the budget; smaller groups, which leave more to later ones, are not looked at.
    """

    def __init__(self, piece: Piece, backwards: bool, gates: Sequence[int] = ()) -> None:
        self._piece = piece
        self._backwards = backwards
        # The atoms that have run at each gate, the smallest set first.
        self._gates = [piece.full & ~gate for gate in (0, *gates[:-1])][::-1] if backwards and gates else list(gates)
        self._need, self._next = (piece.feeds, piece.predecessors) if backwards else (piece.needs, piece.successors)
        self._size = [size for size, _, _, _ in piece.values]
        self._users = [users for _, _, users, _ in piece.values]
        # A value ends with its last user if it is not kept; backwards with its maker, if the piece makes it.
        ends_here = [maker >= 0 if backwards else not kept for _, maker, _, kept in piece.values]
        self._until = [users | (not ends) << piece.n for users, ends in zip(self._users, ends_here, strict=True)]
        bit = {w: 1 << i for i, w in enumerate(piece.readers)}
        self._reads = [[(bit[w], number) for w, number in read.items()] for read in piece.reads]
        self._whole = {bit[w]: piece.weight_bytes[w] for w in piece.readers}
        self._readers = {bit[w]: mask for w, mask in piece.readers.items()}
        self._known: dict[tuple[int, Breadth], list[_Fill]] = {}

    def run(self, breadth: Breadth, alpha: float, most: int, enough: int | None = None) -> Levels:
        """Return the states after each number of groups; in the last level is the whole piece alone.

        Args:
            breadth: the breadth of the beam.
            alpha: the cost of a byte that crosses a boundary, relative to a byte of weights.
            most: the most groups.
            enough: stop when the best state has run this many atoms; the rest is for another piece.
        """
        piece = self._piece
        ready = tuple(atom for atom in range(piece.n) if not self._need[atom])
        states = {0: _State(0.0, (), ready, sum(self._whole.values()), 0, sum(piece.own))}
        levels: Levels = [{0: ()}]
        while len(levels) <= most and piece.full not in states:
            grown: dict[int, _State] = {}
            level = replace(breadth, inner=max(breadth.inner, breadth.fills // len(states)))
            for done, state in states.items():
                for fill in self._fills(done, state.ready, level):
                    to = done | fill.group
                    found = self._after(state, fill, alpha)
                    if to not in grown or found.estimate < grown[to].estimate:
                        grown[to] = found
            states = {piece.full: grown[piece.full]} if piece.full in grown else _best(grown, breadth.width)
            levels.append({done: self._in_order(state.groups) for done, state in states.items()})
            if enough is not None and next(iter(states)).bit_count() >= enough:
                break
        return levels

    def _in_order(self, groups: tuple[int, ...]) -> tuple[int, ...]:
        return groups[::-1] if self._backwards else groups

    def _after(self, state: _State, fill: _Fill, alpha: float) -> _State:
        """Return the state after a fill."""
        weights, crossing = state.weights - fill.finished, state.crossing + fill.crossing
        work = state.work - fill.work
        estimate = weights + alpha * crossing + 0.02 * work
        return _State(estimate, (*state.groups, fill.group), fill.ready, weights, crossing, work)

    def _fills(self, done: int, ready: tuple[int, ...], breadth: Breadth) -> list[_Fill]:
        """Return the groups that may run next when ``done`` has run (backwards: runs later)."""
        known = self._known.get((done, breadth))
        if known is not None:
            return known
        empty = _Fill(0, 0, (), ready, 0, 0, 0, 0, 0, 0)
        begun = self._at_gate(done, empty)
        level, found, seen = [begun], [begun] if begun.group else [], set[int]()
        while level:
            grown = []
            for fill in level:
                for bytes_more, atom, live in self._options(done, fill, breadth):
                    if fill.group | 1 << atom in seen:
                        continue
                    new, over = self._grown(done, fill, atom, bytes_more - live, live)
                    seen.add(new.group)
                    if not over or len(new.members) == 1:
                        found.append(new)
                    if new.weights + self._piece.own[atom] <= self._piece.budget:
                        grown.append(new)
            grown.sort(key=lambda fill: (fill.order, fill.group))
            level = grown[: breadth.inner]
        self._known[done, breadth] = found
        return found

    def _at_gate(self, done: int, empty: _Fill) -> _Fill:
        """Return the fill up to the farthest gate within the budget; an empty one if there is none."""
        piece = self._piece
        low = here = bisect_right(self._gates, done)
        high = len(self._gates)
        while low < high:
            middle = (low + high) // 2
            group = self._gates[middle] & ~done
            after = done if self._backwards else piece.full & ~self._gates[middle]
            if piece.footprint([*bits(group)], group, after) <= piece.budget:
                low = middle + 1
            else:
                high = middle
        return empty if low == here else self._filled(done, empty.ready, self._gates[low - 1] & ~done)

    def _filled(self, done: int, ready: tuple[int, ...], group: int) -> _Fill:
        """Return a fill of many atoms at once."""
        piece, ran, members = self._piece, done | group, tuple(bits(group))
        held = weights = finished = live = crossing = 0
        for atom in self._in_order(members):
            for bit, number in self._reads[atom]:
                if not bit & held:
                    weights += number
                    if not self._readers[bit] & ~ran:
                        finished += self._whole[bit]
                held |= bit
        for v in {v for atom in members for v in piece.touched[atom]}:
            live += self._size[v] * bool(self._until[v] & ~ran)
            crossing += self._size[v] * (bool(self._users[v] & ~ran) - bool(self._users[v] & done))
        enabled = {a for atom in members for a in self._next[atom] if not self._need[a] & ~ran} - {*members}
        ready = (*(a for a in ready if not 1 << a & ran), *sorted(enabled))
        work = sum([piece.own[atom] for atom in members])
        return _Fill(weights + live, group, members, ready, held, weights, live, finished, crossing, work)

    def _grown(self, done: int, fill: _Fill, atom: int, weights: int, live: int) -> tuple[_Fill, bool]:
        """Return a fill with one more atom, which adds these bytes; and whether it exceeds the budget."""
        piece = self._piece
        before = done | fill.group
        ran = before | 1 << atom
        group = fill.group | 1 << atom
        members = [*fill.members]
        insort(members, atom)
        over = piece.footprint(members, group, done if self._backwards else piece.full & ~ran) > piece.budget
        enabled = [a for a in self._next[atom] if not self._need[a] & ~ran]
        ready = tuple([a for a in fill.ready if a != atom] + enabled)
        held, finished, crossing = fill.held, fill.finished, fill.crossing
        for bit, _ in self._reads[atom]:
            held |= bit
            if not self._readers[bit] & ~ran:
                finished += self._whole[bit]
        for v in piece.touched[atom]:
            users = self._users[v]
            if users & ~ran:
                crossing += self._size[v]
            if users & before:
                crossing -= self._size[v]
        weights += fill.weights
        live += fill.live
        order = weights + live + over * piece.budget / 4
        work = fill.work + piece.own[atom]
        return _Fill(order, group, tuple(members), ready, held, weights, live, finished, crossing, work), over

    def _options(self, done: int, fill: _Fill, breadth: Breadth) -> list[tuple[int, int, int]]:
        """Return the best atoms to grow a fill by: (bytes that it adds, atom, those of them that are values)."""
        piece = self._piece
        group, held, size, users, until = fill.group, fill.held, self._size, self._users, self._until
        room = piece.budget - fill.weights
        options = []
        for atom in fill.ready:
            weights = live = 0
            for bit, number in self._reads[atom]:
                if not bit & held:
                    weights += number
            if group and weights + piece.own[atom] > room:
                continue
            left = ~(done | group | 1 << atom)
            for v in piece.touched[atom]:
                if not users[v] & group:
                    live += size[v]
                if not until[v] & left:
                    live -= size[v]
            options.append((weights + live, atom, live))
        options.sort()
        return options[: breadth.tries]


def _best(grown: dict[int, _State], width: int) -> dict[int, _State]:
    """Return the states of the least estimates, the best first; none is a subset of a better one."""
    kept: dict[int, _State] = {}
    heap = [(state.estimate, done) for done, state in grown.items()]
    heapify(heap)
    while heap and len(kept) < width:
        _, done = heappop(heap)
        if not any(done & ~other == 0 for other in kept):  # it has run less, and its estimate is higher
            kept[done] = grown[done]
    return kept


def meet(piece: Piece, ahead: list[Levels], behind: list[Levels], most: int) -> list[int] | None:
    """Return the best plan that joins a forward and a backward beam: fewest groups, then smallest largest group.

    The atoms between a state from the start and a state from the end are one group, or none are left.

    Args:
        piece: the piece of the beams; its budget holds.
        ahead, behind: the levels of the forward beams, and of the backward ones.
        most: the most groups.
    """
    front, back = _by_level(ahead), _by_level(behind)
    for k in range(1, most + 1):
        best: tuple[int, list[int]] | None = None
        for level in range(min(k, len(front))):
            if k - 1 - level >= len(back):
                continue
            for early, groups in front[level].items():
                for late, others in back[k - 1 - level].items():
                    middle = piece.full & ~(early | late)
                    if early & late or not middle:
                        continue
                    members = list(bits(middle))
                    if len(members) > 1 and piece.least(members) > piece.budget:
                        continue
                    size = piece.footprint(members, middle, late)
                    if (size <= piece.budget or len(members) == 1) and (best is None or size < best[0]):
                        best = size, [*groups, middle, *others]
        if best is not None:
            return best[1]
    return None


def _by_level(runs: list[Levels]) -> Levels:
    """Return the states of several beams, level by level."""
    merged: Levels = [{} for _ in range(max(map(len, runs), default=0))]
    for levels in runs:
        for states, found in zip(merged, levels, strict=False):
            states |= {done: groups for done, groups in found.items() if done not in states}
    return merged
