"""Find the smallest maximum among the plans that receive the fewest bytes.

These plans are the paths through a graph that `min_cut.py` has solved: from a boundary at p back to each q that is as
good as the best. Where tensors differ in size these are few, two or three in a layer. The smallest maximum is then the
bottleneck of the paths, one footprint for each pair (q, p).
"""

from __future__ import annotations

from .chain import IntArray
from .contraction import Contraction
from .min_cut import CutTable
from .repeated_partitions import choose
from .sliding_window import Window

# Moves of the window for each atom before the search gives up: more where keys make one of the plans better.
_PATIENCE, _PATIENCE_FOR_KEYS = 8, 32


def smallest_of_ties(
    contraction: Contraction, table: CutTable, oversize: int, keys: IntArray | None = None
) -> tuple[int, list[int]] | None:
    """Return the smallest maximum and its boundaries, or None where too many plans have the fewest bytes.

    O(n + e), plus one row of the table for each p.

    Args:
        contraction: the chain.
        table: the solved plans.
        oversize: a single atom above it does not count for the maximum.
        keys: the atoms' keys, to choose among equal plans (`repeated_partitions.choose`).
    """
    window = Window(contraction)
    moves = (_PATIENCE if keys is None else _PATIENCE_FOR_KEYS) * contraction.num_atoms
    steps: list[dict[int, list[tuple[int, int]]]] = []  # for each layer from the last: p -> (q, bytes of [q, p))
    ends = {contraction.num_atoms}
    for layer in range(table.num_partitions, 0, -1):
        pairs = {}
        for p in sorted(ends):
            starts: list[int] = table.before(layer, p).tolist()
            moves -= p - starts[0]
            if moves < 0:
                return None
            pairs[p] = list(zip(starts, _footprints(window, starts, p, oversize), strict=True))
        steps.append(pairs)
        ends = {q for found in pairs.values() for q, _ in found}

    least = {0: 0}  # for each position the smallest maximum of the paths to it
    reached = [least]
    for pairs in reversed(steps):
        least = {p: min(max(least[q], size) for q, size in found) for p, found in pairs.items()}
        reached.append(least)
    end = contraction.num_atoms
    maximum = least[end]

    def before(layer: int, p: int) -> list[int]:
        found = steps[table.num_partitions - layer][p]
        return [q for q, size in found if size <= maximum and reached[layer - 1][q] <= maximum]

    return maximum, choose(before, table.num_partitions, end, keys)


def _footprints(window: Window, starts: list[int], end: int, oversize: int) -> list[int]:
    """Return the bytes of [q, ``end``) for each of the ascending ``starts``."""
    window.reset(starts[0])
    for _ in range(starts[0], end):
        window.extend()
    sizes = []
    for start in starts:
        while window.first < start:
            window.shrink()
        alone = end - start == 1
        sizes.append(0 if alone and window.footprint > oversize else window.footprint)
    return sizes
