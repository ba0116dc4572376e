"""Hit rate against working set, from bandwidth against working set or, where nothing was measured, from a rule.

Terms. A curve is pairs (working set as a share of the nominal on-chip bytes, hit rate), ascending in the first. A sweep
over a working set reads its bytes again and again, in order. Its bandwidth B lies between the on-chip level L and the
off-chip level D, and time adds up over bytes that hit and bytes that miss:

    1/B = h/L + (1 - h)/D        so        h = (1/D - 1/B) / (1/D - 1/L)

L is the median bandwidth of working sets of a tenth to six tenths of the nominal size, D that of 3 to 10 times it.
A hit rate is not above nominal size over working set, since no cache keeps more than its size; it never rises with the
working set. The usable share is the largest measured one, at most 1, whose hit rate is at least `USABLE_HIT_RATE`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TypeAlias

Curve: TypeAlias = "tuple[tuple[float, float], ...]"

#: From which hit rate on a working set counts as held. It reproduces what a reader would call the knee of the measured
#: curves: 27.5 of 40 MiB (A100), 36 of 50 (H100 PCIe), 43 of 60 (H200), 89.5 of 96 (L40).
USABLE_HIT_RATE = 0.93

#: Usable share of the nominal size where no curve is known. GPU: about that of the NVIDIA curve with the smallest
#: (0.69, A100; the others have 0.72 to 0.93). CPU: cautious,
#: as code, stacks and the allocator live there too; `probe` measures it. Accelerator: memory that software fills holds
#: what is put there.
USABLE_SHARE = {"gpu": 0.7, "cpu": 0.6, "accelerator": 1.0}


def curve_from_bandwidth(points: Sequence[tuple[float, float]], nominal: float) -> Curve:
    """The hit curve of a sweep.

    Args:
        points: (working set, bandwidth), ascending in the first; any unit of bandwidth.
        nominal: the on-chip size, in the unit of the working sets; the points reach from below a half to 3 times it.

    Raises:
        ValueError: no points at one of the two levels, or the on-chip level is not the faster one.

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
        if share < 0.1:  # too short a sweep: its start takes as long as its reads
            continue
        hits = (1 / off_chip - 1 / bandwidth) / (1 / off_chip - 1 / on_chip)
        rate = max(0.0, min(rate, hits, 1 / share))
        if share <= 4:
            curve.append((share, rate))
    return tuple(curve)


def levels(points: Sequence[tuple[float, float]], nominal: float) -> tuple[float, float]:
    """The bandwidths of a sweep on chip and off chip; arguments and errors as for `curve_from_bandwidth`."""
    return _level(points, nominal, 0.1, 0.6), _level(points, nominal, 3, 10)


def _level(points: Sequence[tuple[float, float]], nominal: float, low: float, high: float) -> float:
    found = [bandwidth for size, bandwidth in points if low * nominal <= size <= high * nominal]
    if not found:
        raise ValueError(f"the sweep has no working set of {low:g} to {high:g} times {nominal:g}")
    return median(found)


def curve_from_rule(kind: str, usable_share: float) -> Curve:
    """A hit curve where none was measured.

    Of an accelerator's memory that software fills, the part that fits stays and the rest is fetched. A cache's hit rate
    falls from the usable share on, as steeply as those of the measured GPUs do.
    """
    if kind == "accelerator":
        falling = [(usable_share * times, 1 / times) for times in (1.1, 1.25, 1.5, 2, 3, 4, 6, 8, 16, 32)]
    else:
        falling = [(usable_share + more, rate) for more, rate in ((0.3, 0.45), (0.8, 0.05), (1.3, 0.0))]
    return ((0.0, 1.0), (usable_share, 1.0), *falling)


def scaled(curve: Curve, factor: float) -> Curve:
    """The same curve with working sets that are ``factor`` times as large; no cache keeps more than its size."""
    return tuple((share * factor, min(rate, 1 / (share * factor)) if share else rate) for share, rate in curve)


def usable_share(curve: Curve) -> float:
    """The largest share, at most 1, that the cache holds: its hit rate is at least `USABLE_HIT_RATE`."""
    return max((share for share, rate in curve if share <= 1 and rate >= USABLE_HIT_RATE), default=0.0)


def share_at(curve: Curve, rate: float) -> float | None:
    """The share at which the hit rate falls to ``rate``, between two points linearly; None if it stays above."""
    for (low, above), (high, below) in pairwise(curve):
        if above >= rate > below:
            return low + (high - low) * (above - rate) / (above - below)
    return None


def rate_at(curve: Curve, share: float) -> float:
    """The hit rate at a share: between two points linearly, beyond the last as at the last."""
    at = bisect_left(curve, (share,))
    if at == 0:
        return curve[0][1]
    if at == len(curve):
        return curve[-1][1]
    (low, above), (high, below) = curve[at - 1], curve[at]
    return above + (below - above) * (share - low) / (high - low)
