"""Derive a cache's bandwidths, usable bytes and hit curve from a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import harmonic_mean

from .hit_curves import USABLE_HIT_RATE, Curve, curve_from_bandwidth, levels, share_at
from .records import Figure

#: A knee can be told from noise only if the cache is this much faster than the memory behind it.
_CLEAR = 1.7
#: Sizes within this factor of each other are smoothed together: three each way in a sweep of eighths of an octave.
_NEAR = 2**0.4
_SOURCE = "fx_partition.probe on this machine"


def fit(points: Sequence[tuple[float, float]], nominal: int, cores: float) -> tuple[dict[str, Figure], Curve | None]:
    """Return figures by field, and the hit curve, of one cache; nothing if the sweep does not reach beyond it.

    If the memory behind the cache is nearly as fast, the sweep shows no knee, and the result has bandwidths alone.

    Args:
        points: (bytes, bytes/s) of one core.
        nominal: the cache's size in bytes.
        cores: how many cores read the cache at once; their bandwidths are assumed to add up.

    Example: every read hits at six tenths of the nominal size, and half of them at all of it; 0.93 do in between::

        >>> half = 1 / (0.5 / 1000 + 0.5 / 100)
        >>> figures, _ = fit([(10, 1000), (30, 1000), (60, 1000), (100, half), (400, 100)], 100, cores=1)
        >>> round(figures["usable_bytes"].value, 1)
        65.6
    """
    smooth = falling(smoothed(points))
    try:
        on_chip, off_chip = levels(smooth, nominal)
    except ValueError:
        return {}, None
    confidence = "measured" if cores == 1 else "inferred"
    source = _SOURCE if cores == 1 else f"{_SOURCE}: one core's, times {cores:g}"
    figures = {
        "onchip_bandwidth": Figure(on_chip * cores, source, confidence),
        "memory_bandwidth": Figure(off_chip * cores, source, confidence),
    }
    if on_chip < _CLEAR * off_chip:
        return figures, None
    curve = curve_from_bandwidth(smooth, nominal)
    knee = share_at(curve, USABLE_HIT_RATE)
    if knee is None or knee == 0:
        return figures, None
    usable = min(knee, 1.0)
    figures["usable_bytes"] = Figure(usable * nominal, _SOURCE, "measured")
    return figures, tuple(sorted({*curve, (usable, USABLE_HIT_RATE)})) if usable == knee else curve


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Replace each bandwidth by the harmonic mean of those of near sizes; harmonic, since times add up.

    Without this a little noise would move the knee from run to run, where the curve is flat near `USABLE_HIT_RATE`::

        >>> smoothed([(100, 10.0), (110, 30.0), (200, 5.0)])
        [(100, 15.0), (110, 15.0), (200, 5.0)]
    """
    return [(size, harmonic_mean([rate for other, rate in points if size / _NEAR < other < size * _NEAR]))
            for size, _ in points]


def falling(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the closest points, by least squares, whose bandwidth never rises with size (isotonic regression).

    Noise makes single sizes look faster than smaller ones; neighbours that are out of order are replaced by their
    mean::

        >>> falling([(1, 10.0), (2, 6.0), (3, 8.0), (4, 1.0)])
        [(1, 10.0), (2, 7.0), (3, 7.0), (4, 1.0)]
    """
    runs: list[tuple[float, int]] = []
    for _, rate in points:
        mean, count = rate, 1
        while runs and runs[-1][0] < mean:
            before, length = runs.pop()
            mean, count = (before * length + mean * count) / (length + count), length + count
        runs.append((mean, count))
    rates = [mean for mean, count in runs for _ in range(count)]
    return [(size, rate) for (size, _), rate in zip(points, rates, strict=True)]
