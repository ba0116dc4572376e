"""Place the pieces of a module graph on devices, and say what each device holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..passes.partitioner.chain import Chain
from ..passes.partitioner.dp import balance, dp, smallest_budget
from ..passes.partitioner.greedy import oversize_atoms
from ..passes.partitioner.mixed_devices import overfill, spread
from .devices import DeviceSizes


@dataclass(frozen=True)
class Placing:
    """Pieces on devices.

    Attributes:
        fits: whether no device is overfull.
        sizes: the bytes of each device.
        runs: ``runs[i] .. runs[i + 1]`` are the pieces of device i; a device may have none.
        oversize: a piece that no device holds, if that is why it does not fit; else None.
    """

    fits: bool
    sizes: tuple[int, ...]
    runs: tuple[int, ...]
    oversize: int | None = None


def place(chain: Chain, devices: DeviceSizes) -> Placing:
    """Place the pieces of a chain.

    Of devices that are given, as few from the front as possible are used, and on these the largest is as small as
    possible. If they do not suffice, the largest excess is as small as possible. Without their number, it is the
    fewest; without a size, it is the smallest.
    """
    if not devices.sizes:
        size = devices.size_for(smallest_budget(chain, devices.count))
        return Placing(True, (size,) * devices.count, _padded(balance(chain, devices.count), devices.count))
    budgets = [devices.usable(size) for size in devices.sizes]
    oversize = next(iter(oversize_atoms(chain, max(budgets))), None)
    if not devices.count:
        runs = dp(chain, budgets[0])
        return Placing(oversize is None, devices.sizes * (len(runs) - 1), tuple(runs), oversize)
    found = None if oversize is not None else spread(chain, budgets)
    runs = overfill(chain, budgets) if found is None else found
    return Placing(found is not None, devices.sizes, _padded(runs, devices.count), oversize)


def _padded(runs: Sequence[int], count: int) -> tuple[int, ...]:
    return (*runs, *[runs[-1]] * (count + 1 - len(runs)))


def used(runs: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (device, first piece, end) of each device that has pieces."""
    return [(device, first, end) for device, (first, end) in enumerate(pairwise(runs)) if first < end]
