"""Give devices that are left over copies of the slowest partitions.

A pipeline is as fast as its slowest stage, and a stage with c copies works on c requests at a time. A stage that reads
its footprint once per request takes time in proportion to it, so the slowest is the one with the most bytes per copy.
Giving each further device to the stage that is slowest at that time makes the slowest stage as fast as possible: the
number of copies that a stage needs for a given time does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence


def share_out(sizes: Sequence[int], spare: Sequence[int]) -> list[list[int]]:
    """Return, for each partition, the spare devices that hold a copy of it.

    Args:
        sizes: bytes of each partition.
        spare: bytes of each device that is left over, in order; a copy must fit.

    Example: partitions of 6, 4 and 2 bytes, three more devices of 8: ``[[0, 2], [1], []]``.
    """
    copies: list[list[int]] = [[] for _ in sizes]
    for device, budget in enumerate(spare):
        fitting = [i for i, size in enumerate(sizes) if size <= budget]
        if fitting:
            slowest = max(fitting, key=lambda i: (sizes[i] / (1 + len(copies[i])), -i))
            copies[slowest].append(device)
    return copies
