"""Sets of atoms of a piece through which every order must pass.

Terms
-----
gate
    The first so many atoms of trace order, where each later one needs all of them: every downset is inside of it, or
    holds it. In a decoder such sets end behind the residual sums.

Before (``x`` feeds a and b, which feed c, which feeds d and e)::

    x  a  b  c  d  e

After: the gates {x}, {x a b} and {x a b c}; a and b have two orders, and so have d and e.
"""

from __future__ import annotations

from .piece import Piece


def gates(piece: Piece) -> list[int]:
    """The gates of a piece as masks, ascending, without the empty one and with the whole; linear in its edges."""
    ancestors = [0] * piece.n
    needed = [0] * piece.n  # how many of the first atoms are all ancestors
    for atom, before in enumerate(piece.predecessors):
        for p in before:
            ancestors[atom] |= ancestors[p] | 1 << p
        needed[atom] = (~ancestors[atom] & ancestors[atom] + 1).bit_length() - 1
    found = []
    least = piece.n
    for count in range(piece.n, 0, -1):
        if least >= count:
            found.append((1 << count) - 1)
        least = min(least, needed[count - 1])
    return found[::-1]
