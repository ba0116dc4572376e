"""Group the atoms of a wide graph, so that a search over its downsets becomes possible.

Two rules, each of which keeps the graph free of cycles, until neither applies:

- a *series run*: a group whose only successor has it as its only predecessor becomes one with it, as long as the two
  need at most ``series`` bytes;
- a *small* group, of at most ``absorb`` bytes, becomes one with its only predecessor (it runs as early as it can), or
  else with its only successor (it runs as late as it can).

Before (attention; the reshapes are small)::

    norm -> q, k, v;  q -> q_heads;  k -> k_heads;  v -> v_heads;  q_heads, k_heads, v_heads -> attention

After (series runs; with ``absorb`` above the reshapes' bytes and below the projections', the same)::

    norm -> {q q_heads}, {k k_heads}, {v v_heads} -> attention

What it costs: no boundary falls inside a group, and a small group gives up the places in between.
"""

from __future__ import annotations

from collections.abc import Sequence


def group_atoms(
    predecessors: Sequence[Sequence[int]], sizes: Sequence[int], series: int, absorb: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of atoms, each ascending, and the groups that must run before each; linear a pass.

    Args:
        predecessors: of each atom.
        sizes: bytes that each atom can need at most, whatever runs beside it.
        series: bytes that a series run can need at most.
        absorb: bytes of the groups that count as small.

    Example: ``group_atoms([[], [0], [0]], [4, 4, 1], 8, 1)`` gives ``([[0, 2], [1]], [[], [0]])``.
    """
    groups = [[atom] for atom in range(len(predecessors))]
    before = [set(found) for found in predecessors]
    bytes_of = list(sizes)
    while True:
        into = _merges(before, _only_successors(before), bytes_of, series, absorb)
        if all(target == group for group, target in enumerate(into)):
            return [sorted(atoms) for atoms in groups], [sorted(needed) for needed in before]
        number = {target: i for i, target in enumerate(sorted(set(into)))}
        merged: list[list[int]] = [[] for _ in number]
        needs: list[set[int]] = [set() for _ in number]
        total = [0] * len(number)
        for group, target in enumerate(into):
            new = number[target]
            merged[new] += groups[group]
            total[new] += bytes_of[group]
            needs[new].update(number[into[p]] for p in before[group])
        groups, bytes_of = merged, total
        before = [needed - {group} for group, needed in enumerate(needs)]


def _only_successors(before: list[set[int]]) -> list[int]:
    """For each group its successor if it has one and no other, else -1. (No sets: building thousands is slow.)"""
    count = [0] * len(before)
    last = [-1] * len(before)
    for group, needed in enumerate(before):
        for p in needed:
            count[p] += 1
            last[p] = group
    return [group if number == 1 else -1 for group, number in zip(last, count, strict=True)]


def _merges(
    before: list[set[int]], only_after: list[int], bytes_of: list[int], series: int, absorb: int
) -> list[int]:
    """The group that each becomes one with, or itself; disjoint pairs, so that no merge sees another."""
    into = list(range(len(before)))
    free = [True] * len(before)
    for group, size in enumerate(bytes_of):
        if not free[group]:
            continue
        other = -1
        if len(before[group]) == 1:
            (p,) = before[group]
            if free[p] and (size <= absorb or (only_after[p] == group and size + bytes_of[p] <= series)):
                other = p
        if other < 0 and size <= absorb and only_after[group] >= 0 and free[only_after[group]]:
            other = only_after[group]
        if other >= 0:
            into[group] = other
            free[group] = free[other] = False
    return into
