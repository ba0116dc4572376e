"""A narrow beam over the downsets of a piece: which group may run next, and which then leave the least behind.

Terms
-----
state
    A downset (`downset_footprint`) that some groups reach, all of them within the budget. Backwards, what runs last
    comes
    first: a state is the complement of a downset, and a group grows from the end of the graph.
fill
    A group that may run next. It grows atom by atom, those first that bring few bytes: weights that it does not hold
    yet, and values that are then live less those that are not live any more.
estimate
    Of what a state leaves behind: weights that still have readers, bytes that cross its boundary, and a little for the
    work left.

Before (two branches a, b of two atoms each; a group holds two)::

    state {}                fills {a1}, {b1}, {a1 b1}, {a1 a2}, {b1 b2}

After: ``{a1 a2}`` leaves one branch, and ``{a1 b1}`` leaves two that cross its boundary; a beam of width one goes on
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
    """How much a beam looks at.

    Attributes:
        width: states that survive a group.
        inner: partial fills of a state that survive an atom.
        tries: atoms by which each of these may grow.
        fills: of all states together at least so many partial fills survive; the first group has one state only.
    """

    width: int
    inner: int
    tries: int
    fills: int = 0


# After 0, 1, ... groups: of each state the groups that reach it, in the order in which they run.
Levels = list[dict[int, tuple[int, ...]]]


class _State(NamedTuple):
    estimate: float
    groups: tuple[int, ...]
    ready: tuple[int, ...]
    weights: int
    crossing: int
    work: int


class _Fill(NamedTuple):
    order: float  # partial fills survive by this
    group: int
    members: tuple[int, ...]
    ready: tuple[int, ...]
    held: int  # weights, as a mask
    weights: int
    live: int
    finished: int  # bytes of the weights that have no readers behind it
    crossing: int  # what it adds to the bytes that cross
    work: int


class Beam:
    """One direction of a piece.

    Args:
        piece: all of it is planned, or its first half (`run`).
        backwards: whether from the end.
        gates: sets that every order passes (`gates.gates`), ascending. A group then begins with all that is left of the
            farthest one within the budget: a smaller group, which leaves more behind, is not looked at.
    """

    def __init__(self, piece: Piece, backwards: bool, gates: Sequence[int] = ()) -> None:
        self._piece = piece
        self._backwards = backwards
        # What has run at each gate, the least first.
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
        """The states after each number of groups; the whole is alone in its level, which is the last.

        Args:
            breadth: how much is looked at.
            alpha: what a byte that crosses a boundary counts, next to a byte of weights.
            most: groups.
            enough: stop when the best state has run so many atoms; what is left is for another piece.
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
        """The state behind a fill."""
        weights, crossing = state.weights - fill.finished, state.crossing + fill.crossing
        work = state.work - fill.work
        estimate = weights + alpha * crossing + 0.02 * work
        return _State(estimate, (*state.groups, fill.group), fill.ready, weights, crossing, work)

    def _fills(self, done: int, ready: tuple[int, ...], breadth: Breadth) -> list[_Fill]:
        """The groups that may run next when ``done`` has run (backwards: runs later)."""
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
        """The fill up to the farthest gate within the budget; the empty one where no gate is."""
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
        """A fill of many atoms at once."""
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
        """A fill with one atom more, which brings so many bytes; and whether it is over the budget."""
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
        """The atoms by which a fill may grow, the best few: (bytes that they bring, atom, those that are values)."""
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
    """The states of the least estimates, the best first, none of them a subset of a better one."""
    kept: dict[int, _State] = {}
    heap = [(state.estimate, done) for done, state in grown.items()]
    heapify(heap)
    while heap and len(kept) < width:
        _, done = heappop(heap)
        if not any(done & ~other == 0 for other in kept):  # less has run, and more is left behind
            kept[done] = grown[done]
    return kept


def meet(piece: Piece, ahead: list[Levels], behind: list[Levels], most: int) -> list[int] | None:
    """The plan of the fewest groups, at most so many, and then of the smallest largest, that beams from both ends make
    together: what a state from the start and a state from the end leave between them is one group, or nothing.

    Args:
        piece: that the beams ran on; its budget holds.
        ahead, behind: of beams forwards, and backwards.
        most: groups.
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
    """The states of several beams, level by level."""
    merged: Levels = [{} for _ in range(max(map(len, runs), default=0))]
    for levels in runs:
        for states, found in zip(merged, levels, strict=False):
            states |= {done: groups for done, groups in found.items() if done not in states}
    return merged
