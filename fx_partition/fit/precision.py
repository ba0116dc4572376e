"""Find the fewest blocks whose weights must be quantised so that devices hold a model.

A quantised block keeps its activations, its cache and its small weights; its matrices have fewer bits. So quantising
makes a partition smaller by the sum over its blocks, and on each device the blocks that save most come first.

The programme over boundaries is exact: ``fewest[i]`` is the smallest number of quantised blocks with which the devices
so far hold the first i pieces, for all i; a device adds the least over the starts of its run. No plan with boundaries
between these pieces, in this order, quantises fewer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..passes.partitioner.chain import Chain
from ..passes.partitioner.contraction import contract
from ..passes.partitioner.sliding_window import Window
from .module_graph import Matrix, ModuleGraph

#: Bits of one number, and how many numbers share a scale (0: those of a row) and a zero.
_FORMATS = {"int8": (8, 0, 1), "int4": (4, 128, 2)}
#: The precisions that can be asked for, in addition to a model's own.
QUANTISED = tuple(_FORMATS)


def quantised_bytes(matrix: Matrix, precision: str) -> int:
    """Return the bytes of a matrix, scales included: one for each row (int8), or a scale and a zero for each 128
    numbers (int4), each in the matrix's own dtype.

    Example::

        >>> quantised_bytes(Matrix(1024 * 1024, 1024, 2), "int8"), quantised_bytes(Matrix(1024 * 1024, 1024, 2), "int4")
        (1050624, 557056)
    """
    bits, group, numbers = _FORMATS[precision]
    groups = matrix.rows if not group else -(-matrix.numel // group)
    return -(-matrix.numel * bits // 8) + groups * numbers * matrix.itemsize


def savings(graph: ModuleGraph, precision: str) -> list[int]:
    """Return the bytes that each piece loses when it is quantised; 0 for pieces that are no blocks.

    A matrix that several pieces share is not quantised.
    """
    weights = [graph.weights_of(piece) for piece in range(len(graph.blocks))]
    users = Counter(weight for found in weights for weight in found)
    found = []
    for block, touched in zip(graph.blocks, weights, strict=True):
        own = [graph.matrices[w] for w in touched if block and w in graph.matrices and users[w] == 1]
        found.append(sum(max(0, m.numel * m.itemsize - quantised_bytes(m, precision)) for m in own))
    return found


@dataclass(frozen=True)
class Quantised:
    """The fewest quantised blocks: the pieces to quantise, and the runs of pieces on the devices."""

    pieces: tuple[int, ...]
    runs: tuple[int, ...]


def fewest_quantised(chain: Chain, saved: Sequence[int], budgets: Sequence[int]) -> Quantised | None:
    """Return the fewest pieces to quantise so that devices hold a chain; None if they do not with all quantised.

    Args:
        chain: the planner's input, nothing quantised.
        saved: the bytes that each piece loses when it is quantised.
        budgets: the bytes of each device in order that may be filled.
    """
    n = chain.num_atoms
    sizes = _footprints(chain)
    fewest: list[int | None] = [0, *[None] * n]
    choices: list[list[tuple[int, tuple[int, ...]] | None]] = []
    for budget in budgets:
        reached: list[int | None] = list(fewest)  # the device may stay empty
        choice: list[tuple[int, tuple[int, ...]] | None] = [None] * (n + 1)
        for first in range(n):
            so_far = fewest[first]
            if so_far is None:
                continue
            for end in range(first + 1, n + 1):
                needed = _needed(sizes[first][end - first - 1] - budget, saved, first, end)
                if needed is None:
                    break  # a longer run needs more
                best = reached[end]
                if best is None or so_far + len(needed) < best:
                    reached[end] = so_far + len(needed)
                    choice[end] = (first, needed)
        fewest = reached
        choices.append(choice)
    if fewest[n] is None:
        return None
    runs, pieces = [n], list[int]()
    for choice in reversed(choices):
        picked = choice[runs[-1]]
        runs.append(runs[-1] if picked is None else picked[0])
        pieces += [] if picked is None else picked[1]
    return Quantised(tuple(sorted(pieces)), tuple(reversed(runs)))


def _needed(excess: int, saved: Sequence[int], first: int, end: int) -> tuple[int, ...] | None:
    """Return the fewest pieces of a run that save ``excess`` bytes; None if all of them do not."""
    if excess <= 0:
        return ()
    order = sorted(range(first, end), key=lambda piece: -saved[piece])
    for count, total in enumerate(accumulate(saved[piece] for piece in order), start=1):
        if total >= excess:
            return tuple(order[:count])
    return None


def _footprints(chain: Chain) -> list[list[int]]:
    """Return the bytes of each run of pieces, by its first piece and its length less one."""
    window = Window(contract(chain))
    found = []
    for first in range(chain.num_atoms):
        window.reset(first)
        row = []
        while window.last < chain.num_atoms:
            window.extend()
            row.append(window.footprint)
        found.append(row)
    return found
