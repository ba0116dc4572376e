"""Choose, among equally good plans, one with few distinct partitions: equal ones are compiled once (`backends`).

Terms
-----
key
    A number for each atom: atoms with equal keys run the same operators with equal footprints. Partitions with equal
    rows of keys are taken to be equal here. That is a guess at the compiler's answer, which also depends on arguments,
    strides and gradients. Where the guess is wrong, the plan is still one of the best, and compiles more partitions.
tied
    Positions of the boundary before a boundary at p with which the plan is still among the best: ``before(layer, p)``.
trace
    A plan, chosen from its end: one of the tied positions at every boundary.
phase
    The keys of the two atoms on each side of a position. They tell where in a repeated block the position is.

Before (a repeated ``Linear, ReLU``; a partition holds two, and the positions before and behind a ReLU are tied)::

    leftmost   L R L | R L R L | R L R L | R L R L R     3 distinct

After::

    phase R|L  L R L R | L R L R | L R L R | L R L R     1 distinct

Method: take the leftmost trace, and one trace for each of the phases most frequent among its tied positions. Such a
trace prefers tied positions that make a partition equal to one it has, then those in its phase, then the leftmost. The
plan is the first of the traces with the fewest distinct partitions, so it never has more of them than the leftmost. It
does not always have the fewest of all plans: finding these is a set cover. Partitions are compared by polynomial hashes
of their keys modulo 2^61 - 1 from prefix sums (Karp and Rabin, 1987), in O(1). Ties are looked up once for each
boundary, so a trace costs O(n) plus the number of tied positions. Chains longer than `MAX_ATOMS` get no keys, and the
leftmost plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from .chain import Chain, IntArray

# Graphs of more atoms are not compiled in practice, and the traces would take much of the planner's time.
MAX_ATOMS = 20_000

_PHASES = 6
_SIDE = 2  # atoms on each side of a position that make its phase
_PRIME = (1 << 61) - 1
_BASE = 1_000_003_999_999  # any number of this order, larger than any key

Before = Callable[[int, int], list[int]]


def with_keys(chain: Chain, operators: Sequence[Hashable]) -> Chain:
    """Return the chain with its ``atom_key``, or unchanged if it has more than `MAX_ATOMS` atoms.

    Args:
        chain: the planner's input.
        operators: for each step its operator, or anything that is equal where the operators are the same.

    Example: two layers ``linear, relu`` of one size, every step an atom: ``atom_key == [0, 1, 0, 1]``.
    """
    if chain.num_atoms > MAX_ATOMS:
        return chain
    rows: list[Hashable] = []
    touch_start, touched = chain.touch_start.tolist(), chain.touch_value.tolist()
    size, made = chain.value_bytes.tolist(), chain.value_def.tolist()
    weight_start, read = chain.weight_start.tolist(), chain.weight_touch_bytes.tolist()
    for t, workspace in enumerate(chain.workspace.tolist()):
        values = sorted((size[v], made[v] == t) for v in touched[touch_start[t] : touch_start[t + 1]])
        weights = sorted(read[weight_start[t] : weight_start[t + 1]])
        rows.append((operators[t], workspace, tuple(values), tuple(weights)))
    numbers: dict[Hashable, int] = {}
    keys = [
        numbers.setdefault(tuple(rows[first:end]), len(numbers)) for first, end in pairwise(chain.atom_start.tolist())
    ]
    return replace(chain, atom_key=np.array(keys, dtype=np.int64))


def choose(before: Before, num_partitions: int, end: int, keys: IntArray | None) -> list[int]:
    """Return the boundaries ``[0, ..., end]`` of one of the tied plans, by the method above.

    Args:
        before: returns the tied positions of boundary ``layer - 1`` if boundary ``layer`` is at p, ascending, at least
            one.
        num_partitions: the number of partitions of each plan.
        end: the position of the last boundary.
        keys: the atoms' keys; without them the last boundary is leftmost, then the one before it, and so on.

    Example: ``choose(lambda layer, p: [[0], [3, 4]][layer - 1], 2, 8, keys)`` with keys 0, 1, 0, 1, ... is
    ``[0, 4, 8]``, and without keys ``[0, 3, 8]``.
    """
    tied: dict[tuple[int, int], list[int]] = {}

    def places(layer: int, p: int) -> list[int]:
        if (layer, p) not in tied:
            tied[layer, p] = before(layer, p)
        return tied[layer, p]

    leftmost = [end]
    for layer in range(num_partitions, 0, -1):
        leftmost.append(places(layer, leftmost[-1])[0])
    leftmost.reverse()
    if keys is None or all(len(starts) == 1 for starts in tied.values()):
        return leftmost
    rows = _Rows(keys)

    def in_phase(wanted: Hashable) -> list[int]:
        made: set[int] = set()
        found = [end]
        for layer in range(num_partitions, 0, -1):
            p = found[-1]
            ranked = [(rows.hash(q, p) not in made, rows.phase(q) != wanted, q) for q in places(layer, p)]
            found.append(min(ranked)[2])
            made.add(rows.hash(found[-1], p))
        return found[::-1]

    phases = Counter(rows.phase(q) for starts in tied.values() if len(starts) > 1 for q in starts)
    plans = [leftmost, *(in_phase(phase) for phase, _ in phases.most_common(_PHASES))]
    return min(plans, key=rows.num_distinct)


class _Rows:
    """Compares runs of keys by their hashes."""

    def __init__(self, keys: IntArray) -> None:
        self._keys: list[int] = keys.tolist()
        # Plus one, so that runs of zeros of different lengths have different hashes.
        self._sums = list(accumulate(self._keys, lambda total, key: (total * _BASE + key + 1) % _PRIME, initial=0))
        self._powers = list(accumulate(self._keys, lambda power, _: power * _BASE % _PRIME, initial=1))

    def hash(self, first: int, end: int) -> int:
        return (self._sums[end] - self._sums[first] * self._powers[end - first]) % _PRIME

    def phase(self, place: int) -> Hashable:
        return tuple(self._keys[max(place - _SIDE, 0) : place + _SIDE])

    def num_distinct(self, boundaries: Sequence[int]) -> int:
        return len({self.hash(q, p) for q, p in pairwise(boundaries)})
