"""Compute the footprint of a set of atoms that grows atom by atom, in any order that precedence allows.

Terms
-----
downset
    A set of groups that holds the predecessors of each of its members: the groups before a boundary are one.
part
    The difference D2 minus D1 of two downsets: the contents of one partition. Its steps run in trace order.
group
    Atoms that the search keeps together, as a list of atoms, ascending.

The footprint of a part is the one of `chain`: a value that the part touches is resident from its definition (from the
part's first step if D1 defines it or the caller passes it in) to its last touch in the part, or to the part's end if an
atom outside D2 touches it or the graph returns it. Unlike the footprint of an interval, it may fall when the part
grows: an atom that joins in the middle of trace order can be the last user of a value. The ``bound`` never falls: the
weights of the part plus the bytes that its largest step touches and allocates.

Before: a part with ``profile``, the bytes resident at each step of the graph (far below 0 at steps of other parts).
After ``grown(part, group, ...)``: a new part; the cost is two slices of the profile for each value of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..partitioner.chain import Chain, IntArray

# Far below any profile: the bytes at a step that is not in the part.
_ABSENT = -(1 << 60)


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the graph between two downsets; sets are bit masks over groups.

    Attributes:
        members: its groups.
        weight_mask, partial: the weights that it reads whole, and the bytes of those that some step reads in part.
        weights: the bytes of all its weights.
        own: the most bytes that one of its steps touches and allocates.
        received: the bytes of the values that D1 defines and the part touches.
        profile: ``(num_steps,)`` resident and scratch bytes at its steps.
    """

    members: int
    weight_mask: int
    partial: dict[int, int]
    weights: int
    own: int
    received: int
    profile: IntArray

    @property
    def footprint(self) -> int:
        return self.weights + int(self.profile.max())

    @property
    def bound(self) -> int:
        """A lower bound of the footprint, which never falls when the part grows."""
        return self.weights + self.own


@dataclass(frozen=True)
class _Value:
    """A value: bytes, defining group (0: the caller) and step, touching groups, (step, group) latest first."""

    size: int
    maker: int
    begin: int
    touchers: int
    kept: bool
    touches: tuple[tuple[int, int], ...]


class Parts:
    """Grows parts of one chain; all masks are over ``groups``."""

    def __init__(self, chain: Chain, groups: Sequence[Sequence[int]]) -> None:
        self._num_steps = chain.num_steps
        starts: list[int] = chain.atom_start.tolist()
        steps = [[t for atom in group for t in range(starts[atom], starts[atom + 1])] for group in groups]
        self._steps = [np.array(found, dtype=np.int64) for found in steps]
        self._present = [chain.workspace[found] - _ABSENT for found in self._steps]
        self._sizes: list[int] = chain.weight_bytes.tolist()
        touch_start, touch_value = chain.touch_start.tolist(), chain.touch_value.tolist()
        row, ids, reads = chain.weight_start.tolist(), chain.weight_id.tolist(), chain.weight_touch_bytes.tolist()
        size, defined, returned = chain.value_bytes.tolist(), chain.value_def.tolist(), chain.value_returned.tolist()
        workspace: list[int] = chain.workspace.tolist()

        touches: dict[int, list[tuple[int, int]]] = {}
        self.reads: list[dict[int, int]] = []  # by group: the bytes that it touches of each weight
        self._own: list[int] = []
        self._touched: list[list[int]] = []
        for group, found in enumerate(steps):
            read: dict[int, int] = {}
            touched: dict[int, None] = {}
            own = 0
            for t in found:
                values = touch_value[touch_start[t] : touch_start[t + 1]]
                own = max(own, workspace[t] + sum(size[v] for v in values))
                for v in values:
                    touched[v] = None
                    touches.setdefault(v, []).append((t, 1 << group))
                for i in range(row[t], row[t + 1]):
                    read[ids[i]] = read.get(ids[i], 0) + reads[i]
            self.reads.append({w: min(number, self._sizes[w]) for w, number in read.items()})
            self._own.append(own)
            self._touched.append([v for v in touched if size[v]])
        self._values: dict[int, _Value] = {}
        for v, pairs in touches.items():
            pairs.sort(reverse=True)
            touchers = 0
            for _, bit in pairs:
                touchers |= bit
            maker = next((bit for t, bit in pairs if t == defined[v]), 0)
            self._values[v] = _Value(size[v], maker, max(defined[v], 0), touchers, bool(returned[v]), tuple(pairs))
        self.partly = {w for read in self.reads for w, number in read.items() if number < self._sizes[w]}
        self._whole = [sum(1 << w for w in read if w not in self.partly) for read in self.reads]
        # The most bytes that a group can need, whatever runs before and after it.
        self.at_most = [
            sum(read.values()) + sum(size[v] for v in touched) + max((workspace[t] for t in found), default=0)
            for read, touched, found in zip(self.reads, self._touched, steps, strict=True)
        ]

    def empty(self) -> Part:
        return Part(0, 0, {}, 0, 0, 0, np.full(self._num_steps, _ABSENT, dtype=np.int64))

    def bound(self, part: Part, group: int) -> int:
        """Return the ``bound`` of the part with ``group`` in it."""
        weights = part.weights
        for w, number in self.reads[group].items():
            if w in self.partly:
                before = part.partial.get(w, 0)
                weights += min(before + number, self._sizes[w]) - before
            elif not part.weight_mask >> w & 1:
                weights += number
        return weights + max(part.own, self._own[group])

    def grown(self, part: Part, group: int, outside: int) -> Part:
        """Return the part with one more group; ``outside`` are the groups that are not in D2 with that group."""
        bit = 1 << group
        members = part.members | bit
        profile = part.profile.copy()
        profile[self._steps[group]] += self._present[group]
        received = part.received
        for v in self._touched[group]:
            value = self._values[v]
            begin = value.begin if value.maker & members else 0
            end = self._end(value, members, outside)
            if value.touchers & part.members:
                old = self._end(value, part.members, outside | bit)
                if end > old:
                    profile[old:end] += value.size
                elif end < old:
                    profile[end:old] -= value.size
            else:
                profile[begin:end] += value.size
                if value.maker and not value.maker & members:
                    received += value.size
        partial = part.partial
        if self.partly and not self.partly.isdisjoint(self.reads[group]):
            partial = dict(partial)
            for w in self.partly & self.reads[group].keys():
                partial[w] = min(partial.get(w, 0) + self.reads[group][w], self._sizes[w])
        weights = self.bound(part, group) - max(part.own, self._own[group])
        own = max(part.own, self._own[group])
        return Part(members, part.weight_mask | self._whole[group], partial, weights, own, received, profile)

    def _end(self, value: _Value, members: int, outside: int) -> int:
        """Return the step at which a value that ``members`` touch leaves them: one past its last touch, or the end."""
        if value.kept or value.touchers & outside:
            return self._num_steps
        return 1 + next(t for t, bit in value.touches if bit & members)
