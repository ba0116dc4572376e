"""Find the sets of atoms through which every order of a piece must pass.

Terms
-----
gate
    A prefix of trace order such that each later atom is a descendant of all its atoms: every downset is a subset of it,
    or a superset. In a decoder, gates end at the residual sums.

Before (``x`` feeds a and b, which feed c, which feeds d and e)::

    x  a  b  c  d  e

After: the gates {x}, {x a b} and {x a b c}; a and b have two orders, and so have d and e.
"""

from __future__ import annotations

from .piece import Piece


def gates(piece: Piece) -> list[int]:
    """Return the gates of a piece as masks, ascending, the whole piece last; linear in its edges."""
    ancestors = [0] * piece.n
    needed = [0] * piece.n  # the length of the longest prefix of which all atoms are ancestors
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
