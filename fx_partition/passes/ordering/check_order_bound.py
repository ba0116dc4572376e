"""What one moment of the trace says about every order: a number of partitions that no order goes below, to be checked.

Terms
-----
regular atom
    Its weights, all values that it touches and its scratch memory are within the budget together: alone it always fits.
bare atom
    Its weights and what its largest step touches and allocates are beyond the budget: it is alone in every plan.
moment
    A step t of the trace. *Live* there are the values that a step of a regular atom up to t makes, and that a later
    step touches or the graph returns.

Why it holds. Let G be a partition of a plan over any order, with a regular atom in it, so that it is within the budget
C. Its steps run in trace order. A value that G makes and that is live at t stays from where it is made at least to the
last step of G that is not behind t: its last user in the trace comes behind t, so if that runs in G it runs later, and
if it runs in another partition, which must be a later one, the value stays to the end. So at the step of G that makes
the last of its live values, all of them are there, and what else this step touches and allocates; a partition that
makes none of them has at least one step. With ``rest`` the least of all that, ::

    C >= weights(G) + (live bytes that G makes) + rest

and the sum over the partitions that have a regular atom, with every weight in at least one of them, is ::

    k >= (weights + live bytes) / (C - rest)  +  number of bare atoms

Without a moment: each weight of w bytes that a regular atom reads whole takes a part of at least w / (C - r) of the
partition that it is in, where r is the least that a step of one of its readers touches and allocates, and these parts
add up to at most the number of partitions.

This file shares no code with the planner. `order_bound.py` finds the moment that says most.
"""

from __future__ import annotations

from itertools import pairwise

from ..partitioner.chain import Chain

# Parts of a partition are counted in whole numbers: sums of fractions take long, and floating point may round up.
_UNIT = 1 << 48


def fewest_partitions(chain: Chain, budget: int, moment: int | None) -> int:
    """The least number of partitions of any plan over any order, by one moment of the trace or by the weights alone.

    Args:
        chain: in trace order, and not one that adds up.
        budget: bytes of one device.
        moment: a step, None for the weights alone.
    """
    assert not chain.adds_up
    starts, workspace, size = chain.atom_start.tolist(), chain.workspace.tolist(), chain.value_bytes.tolist()
    row, values = chain.touch_start.tolist(), chain.touch_value.tolist()
    touched = [values[a:b] for a, b in pairwise(row)]
    at_step = [sum([size[v] for v in found]) + extra for found, extra in zip(touched, workspace, strict=True)]
    full, weight_row = chain.weight_bytes.tolist(), chain.weight_start.tolist()
    ids, parts_read = chain.weight_id.tolist(), chain.weight_touch_bytes.tolist()

    bare = 0
    regular: list[tuple[int, int, dict[int, int]]] = []
    for first, end in pairwise(starts):
        read: dict[int, int] = {}
        for i in range(weight_row[first], weight_row[end]):
            read[ids[i]] = min(full[ids[i]], read.get(ids[i], 0) + parts_read[i])
        weights = sum(read.values())
        everything = sum([size[v] for v in set(values[row[first] : row[end]])])
        if weights + everything + max(workspace[first:end]) <= budget:
            regular.append((first, end, read))
        elif weights + max(at_step[first:end]) > budget:
            bare += 1
    if not regular:
        return max(bare, int(chain.num_atoms > 0))
    if moment is None:
        return bare + max(1, -(-_by_weights(full, budget, regular, at_step) // _UNIT))

    held: dict[int, int] = {}
    mine: set[int] = set()
    for first, end, read in regular:
        mine.update(range(first, end))
        for w, number in read.items():
            held[w] = min(full[w], held.get(w, 0) + number)
    later = {v for found in touched[moment + 1 :] for v in found}
    returned, defined = chain.value_returned.tolist(), chain.value_def.tolist()
    live = {
        v
        for v, made_at in enumerate(defined)
        if made_at in mine and made_at <= moment and (returned[v] or v in later)
    }
    rest = min(max(at_step[first:end]) for first, end, _ in regular)
    for t in {defined[v] for v in live}:
        rest = min(rest, at_step[t] - sum([size[v] for v in touched[t] if v in live]))
    total = sum(held.values()) + sum([size[v] for v in live])
    return bare + max(1, -(-total // (budget - rest)) if rest < budget else 0)


def _by_weights(
    full: list[int], budget: int, regular: list[tuple[int, int, dict[int, int]]], at_step: list[int]
) -> int:
    """The parts of partitions that the weights take that some regular atom reads whole, each rounded down to a unit."""
    least: dict[int, int] = {}
    for first, end, read in regular:
        for w, number in read.items():
            if number == full[w] > 0:
                least[w] = min(least.get(w, budget), max(at_step[first:end]))
    room: dict[int, int] = {}
    for w, rest in least.items():
        room[budget - rest] = room.get(budget - rest, 0) + full[w]
    return sum(number * _UNIT // left for left, number in room.items())
