"""torchgpipe.balance.blockpartition: k runs of atoms of nearly equal weights + outputs; the smallest k that fits.

It is given bytes of atoms, a finer grain than the layers of a Sequential for which it was made.
"""

from __future__ import annotations

from itertools import accumulate

from .case import Case, Planned, smallest_that_fits


def plan(case: Case, budget: int) -> Planned:
    from torchgpipe.balance import blockpartition

    def split(sizes: list[int], k: int) -> list[int]:
        return [0, *accumulate(len(part) for part in blockpartition.solve(sizes, partitions=k))]

    return smallest_that_fits(case, budget, split)
