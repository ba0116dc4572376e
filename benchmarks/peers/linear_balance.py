"""deepspeed.runtime.utils.partition_balanced: k runs of atoms, least (largest - smallest) sum of weights + outputs;
the smallest k that fits.

It is given bytes of atoms, a finer grain than the layers of a PipelineModule for which it was made.
"""

from __future__ import annotations

from .case import Case, Planned, smallest_that_fits


def plan(case: Case, budget: int) -> Planned:
    from deepspeed.runtime.utils import partition_balanced

    def split(sizes: list[int], k: int) -> list[int]:
        return [int(boundary) for boundary in partition_balanced(sizes, k)]

    return smallest_that_fits(case, budget, split)
