"""Derive the hit rate against working set from measured bandwidths, or from a rule where nothing was measured.

Terms. A curve is pairs (working set as a share of the nominal on-chip bytes, hit rate), ascending in the first. A sweep
over a working set reads its bytes again and again, in order. Its bandwidth B is between the on-chip level L and the
off-chip level D, and the times of the bytes that hit and of the bytes that miss add up:

    1/B = h/L + (1 - h)/D        so        h = (1/D - 1/B) / (1/D - 1/L)

L is the median bandwidth of working sets of a tenth to six tenths of the nominal size, D the median of 3 to 10 times
it. A hit rate is at most nominal size over working set, since no cache keeps more than its size, and it never rises
with the working set. The usable share is the largest share in the curve, at most 1, whose hit rate is at least
`USABLE_HIT_RATE`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TypeAlias

Curve: TypeAlias = "tuple[tuple[float, float], ...]"

#: A working set counts as held on chip from this hit rate on. The rate gives the knee that a reader would see in the
#: measured curves: 27.5 of 40 MiB (A100), 36 of 50 (H100 PCIe), 43 of 60 (H200), 89.5 of 96 (L40).
USABLE_HIT_RATE = 0.93

#: Usable share of the nominal size where no curve is known. GPU: about the smallest of the NVIDIA curves (0.69, A100;
#: the others have 0.72 to 0.93). CPU: a cautious guess, as code, stacks and the allocator use the cache too; `probe`
#: measures it. Accelerator: all of it, as software fills its memory.
USABLE_SHARE = {"gpu": 0.7, "cpu": 0.6, "accelerator": 1.0}


def curve_from_bandwidth(points: Sequence[tuple[float, float]], nominal: float) -> Curve:
    """Return the hit curve of a sweep.

    Args:
        points: (working set, bandwidth), ascending in the first; any unit of bandwidth.
        nominal: the on-chip size in the unit of the working sets, which must reach from below a half to 3 times it.

    Raises:
        ValueError: one of the two levels has no points, or the on-chip level is not the faster one.

    Example::

        >>> curve_from_bandwidth([(5, 1000), (8, 1000), (20, 250), (40, 250)], nominal=10)
        ((0.0, 1.0), (0.5, 1.0), (0.8, 1.0), (2.0, 0.0), (4.0, 0.0))
    """
    on_chip, off_chip = levels(points, nominal)
    if off_chip >= on_chip:
        raise ValueError(f"a sweep that is as fast off chip ({off_chip:g}) as on chip ({on_chip:g}) shows no cache")
    curve, rate = [(0.0, 1.0)], 1.0
    for size, bandwidth in points:
        share = size / nominal
        if share < 0.1:  # the start of so short a sweep takes as long as its reads
            continue
        hits = (1 / off_chip - 1 / bandwidth) / (1 / off_chip - 1 / on_chip)
        rate = max(0.0, min(rate, hits, 1 / share))
        if share <= 4:
            curve.append((share, rate))
    return tuple(curve)


def levels(points: Sequence[tuple[float, float]], nominal: float) -> tuple[float, float]:
    """Return the bandwidths of a sweep on chip and off chip; arguments and errors as for `curve_from_bandwidth`."""
    return _level(points, nominal, 0.1, 0.6), _level(points, nominal, 3, 10)


def _level(points: Sequence[tuple[float, float]], nominal: float, low: float, high: float) -> float:
    found = [bandwidth for size, bandwidth in points if low * nominal <= size <= high * nominal]
    if not found:
        raise ValueError(f"the sweep has no working set of {low:g} to {high:g} times {nominal:g}")
    return median(found)


def curve_from_rule(kind: str, usable_share: float) -> Curve:
    """Return an assumed hit curve, for a device whose curve was not measured.

    Software fills an accelerator's memory: the part that fits stays, and the rest is fetched. The hit rate of a cache
    falls from the usable share on, as steeply as in the measured GPUs.
    """
    if kind == "accelerator":
        falling = [(usable_share * times, 1 / times) for times in (1.1, 1.25, 1.5, 2, 3, 4, 6, 8, 16, 32)]
    else:
        falling = [(usable_share + more, rate) for more, rate in ((0.3, 0.45), (0.8, 0.05), (1.3, 0.0))]
    return ((0.0, 1.0), (usable_share, 1.0), *falling)


def scaled(curve: Curve, factor: float) -> Curve:
    """Stretch a curve to working sets ``factor`` times as large, within what a cache of this size can keep."""
    return tuple((share * factor, min(rate, 1 / (share * factor)) if share else rate) for share, rate in curve)


def usable_share(curve: Curve) -> float:
    """Return the largest share, at most 1, whose hit rate is at least `USABLE_HIT_RATE`."""
    return max((share for share, rate in curve if share <= 1 and rate >= USABLE_HIT_RATE), default=0.0)


def share_at(curve: Curve, rate: float) -> float | None:
    """Return the share at which the hit rate falls to ``rate``, interpolated linearly; None if it stays above."""
    for (low, above), (high, below) in pairwise(curve):
        if above >= rate > below:
            return low + (high - low) * (above - rate) / (above - below)
    return None


def rate_at(curve: Curve, share: float) -> float:
    """Return the hit rate at a share, interpolated linearly; beyond the last point it is that of the last point."""
    at = bisect_left(curve, (share,))
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1]
    (low, above), (high, below) = curve[at - 1], curve[at]
    return above + (below - above) * (share - low) / (high - low)
