"""Among plans that are equally good, one whose partitions are alike: equal ones are compiled once (`backends`).

Terms
-----
key
    A number for each atom: atoms with equal keys run the same operators with equal footprints. Partitions with equal
    rows of keys are taken for equal here. That is a guess at what the compiler will find (it looks at more: arguments,
    strides, who needs a gradient); where it is wrong the plan is as good as any other and compiles as often.
tied
    Places for the boundary before one at p from which on the plan is still among the best: ``before(layer, p)``.
trace
    A plan, chosen from its end: at every boundary one of the tied places.
phase
    Of a place the keys of the two atoms on both sides of it: where in a repeated block it lies.

Before (``Linear, ReLU`` again and again, a partition holds two; all places that are tied behind or before a ReLU)::

    leftmost   L R L | R L R L | R L R L | R L R L R     3 distinct

After::

    phase R|L  L R L R | L R L R | L R L R | L R L R     1 distinct

Method: the leftmost trace, and for each of the phases most frequent among its tied places one that prefers, among the
tied places, those that make a partition equal to one it has, then those in this phase, then the leftmost. The first of
the traces with the fewest distinct partitions is the plan, so it never has more of them than the leftmost. The fewest
of all plans are not always found: finding them is a set cover. Partitions are compared by polynomial hashes of their
keys modulo 2^61 - 1 from prefix sums (Karp and Rabin, 1987), in O(1). Ties are looked up once a boundary, so that a
trace costs O(n) and the numbers of tied places; longer chains than
`MAX_ATOMS` get no keys, and the leftmost plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from .chain import Chain, IntArray

# Beyond so many atoms nobody compiles the partitions, and the traces would take a share of the planner's time.
MAX_ATOMS = 20_000

_PHASES = 6
_SIDE = 2  # atoms on each side of a place that make its phase
_PRIME = (1 << 61) - 1
_BASE = 1_000_003_999_999  # any number of that order; larger than any key

Before = Callable[[int, int], list[int]]


def with_keys(chain: Chain, operators: Sequence[Hashable]) -> Chain:
    """The chain with ``atom_key`` filled in, as it is if it has more than `MAX_ATOMS` atoms.

    Args:
        chain: the planner's input.
        operators: what each step runs; equal where the same operator is called.

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
    """The boundaries ``[0, ..., end]`` of one of the tied plans, by the method above.

    Args:
        before: the tied places for boundary ``layer - 1`` if boundary ``layer`` is at p, ascending and at least one.
        num_partitions: of all the plans.
        end: where they end.
        keys: of the atoms; without them the last boundary is leftmost, then the one before it, and so on.

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
    """Hashes of runs of keys."""

    def __init__(self, keys: IntArray) -> None:
        self._keys: list[int] = keys.tolist()
        # One more than the key, so that a run of zeros is not like a shorter one.
        self._sums = list(accumulate(self._keys, lambda total, key: (total * _BASE + key + 1) % _PRIME, initial=0))
        self._powers = list(accumulate(self._keys, lambda power, _: power * _BASE % _PRIME, initial=1))

    def hash(self, first: int, end: int) -> int:
        return (self._sums[end] - self._sums[first] * self._powers[end - first]) % _PRIME

    def phase(self, place: int) -> Hashable:
        return tuple(self._keys[max(place - _SIDE, 0) : place + _SIDE])

    def num_distinct(self, boundaries: Sequence[int]) -> int:
        return len({self.hash(q, p) for q, p in pairwise(boundaries)})
