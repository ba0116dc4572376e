"""Find an order for a graph of any size: a narrow beam over one piece after another, forwards or backwards.

Terms
-----
base order
    A topological order. A piece is the next atoms of it that no group holds yet.

A beam (`beam`) plans a piece until half of it has run. The groups of its best state are kept, and the next piece begins
after them. So at a constant breadth the time grows linearly with the number of atoms.

Before: a base order of 1,000 atoms.
After: groups of the first piece, of the next one, and so on: an order of the atoms, whose boundaries `dp` places.
"""

from __future__ import annotations

from collections.abc import Sequence

from .beam import Beam, Breadth
from .gates import gates
from .piece import Graph, bits

PIECE = 128


def roll(
    graph: Graph, base: Sequence[int], budget: int, breadth: Breadth, alpha: float, *, backwards: bool
) -> list[int]:
    """Return the atoms in an order that a beam over one piece after another finds.

    Args:
        graph: the whole graph.
        base: a topological order.
        budget: the bytes of one device.
        breadth, alpha: arguments of the beam.
        backwards: whether pieces are taken from the end.
    """
    n = len(base)
    users_left = list(graph.touchers)
    users_placed = [0] * len(users_left)
    waiting = iter(reversed(base) if backwards else base)
    held: list[int] = []
    order: list[int] = []

    def later(v: int, here: int) -> bool:
        return users_placed[v] > 0 if backwards else users_left[v] > here

    while len(order) < n:
        while len(held) < PIECE and (atom := next(waiting, None)) is not None:
            held.append(atom)
        held.sort()
        piece = graph.piece(held, budget, later)
        enough = len(held) if len(order) + len(held) == n else len(held) // 2
        levels = Beam(piece, backwards, gates(piece)).run(breadth, alpha, piece.n, enough)
        best = next(iter(levels[-1].values()))
        ran = [held[i] for group in (reversed(best) if backwards else best) for i in _ordered(group, backwards)]
        for atom in ran:
            for v in graph.touched[atom]:
                users_left[v] -= 1
                users_placed[v] += 1
        order += ran
        gone = set(ran)
        held = [atom for atom in held if atom not in gone]
    return order[::-1] if backwards else order


def _ordered(group: int, backwards: bool) -> list[int]:
    members = list(bits(group))
    return members[::-1] if backwards else members
