"""The arithmetic of measured times: medians, bandwidths, the knee of a curve, a projected pipeline, the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIB = 2**20
VERDICT_MIB = (30, 43)  # within the usable L2 of an H200, and at its end
GAIN = 1.2  # a stage is worth a GPU of its own if its weights in L2 make it so many times as fast as from HBM

Curve = Sequence[tuple[float, float]]  # (MiB, GB/s), ascending in MiB


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return the median, the shortest and the longest of samples in seconds, in microseconds.

    Example::

        >>> summary([3e-6, 1e-6, 2e-6])
        {'us': 2.0, 'least_us': 1.0, 'most_us': 3.0}
    """
    found = (statistics.median(samples), min(samples), max(samples))
    return dict(zip(("us", "least_us", "most_us"), (round(1e6 * seconds, 4) for seconds in found), strict=True))


def gigabytes_a_second(size: int, microseconds: float) -> float:
    """Return the GB/s of reading ``size`` bytes."""
    return size / microseconds / 1e3


def plateau(curve: Curve) -> float:
    """Return the bandwidth of small working sets: the median of all that reach half the best."""
    best = max(bandwidth for _, bandwidth in curve)
    return statistics.median(bandwidth for _, bandwidth in curve if bandwidth >= best / 2)


def knee(curve: Curve, fraction: float) -> float | None:
    """Return the largest working set (MiB) up to which bandwidth stays above a fraction of the plateau; None if all do.

    Sets smaller than that of the best bandwidth do not count: they are too little work to fill a GPU.
    """
    bandwidths = [bandwidth for _, bandwidth in curve]
    best = bandwidths.index(max(bandwidths))
    floor = fraction * plateau(curve)
    for (size, _), (_, following) in zip(curve[best:], curve[best + 1 :], strict=False):
        if following < floor:
            return size
    return None


def copies_to_miss(size: int, l2_bytes: int) -> int:
    """Return the number of copies of a stage that, read in turn, find nothing of themselves in L2: four times its size.

    Example::

        >>> copies_to_miss(30 * MIB, 60 * MIB)
        8
    """
    return max(2, -(-4 * l2_bytes // size))


@dataclass(frozen=True)
class Projection:
    """A pipeline of GPUs, in seconds: a result every ``period``, each ``latency`` after its request.

    Attributes:
        speedup: the throughput over that of the whole model on one GPU.
        per_gpu: the speed-up for each GPU: above 1, the pipeline beats as many copies of the whole model.
    """

    period: float
    latency: float
    speedup: float
    per_gpu: float


def project(whole: float, stages: Sequence[float], hop: float) -> Projection:
    """Return the pipeline of a GPU for each stage, against the whole model on one in ``whole`` seconds.

    Throughput is that of the slowest stage or hop; a lone request passes all of them.
    """
    period = max(*stages, hop if len(stages) > 1 else 0.0)
    speedup = whole / period
    return Projection(period, sum(stages) + (len(stages) - 1) * hop, speedup, speedup / len(stages))


def gains(times: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return, for each working set, the time from HBM over the shortest time from L2, window or not.

    Args:
        times: by working set, microseconds by "hbm", "resident" and, where there is one, "window".
    """
    return {
        size: round(found["hbm"] / min(found[name] for name in ("resident", "window") if name in found), 3)
        for size, found in times.items()
    }


def verdict(read: Mapping[str, float], inductor: Mapping[str, float]) -> str:
    """Return the verdict from the gains of the read kernel and of inductor's stage, by working set in MiB.

    Raises:
        KeyError: a working set of `VERDICT_MIB` was not measured.

    Example::

        >>> print(verdict({"30": 2.3, "43": 1.9}, {"30": 1.5, "43": 1.1}))
        resident over HBM: read kernel 2.30 at 30 MiB, 1.90 at 43 MiB; inductor's stage 1.50 at 30 MiB, 1.10 at 43 MiB:
        weights in L2 pay at 30 MiB
    """
    said = [
        f"{name} " + ", ".join(f"{found[str(size)]:.2f} at {size} MiB" for size in VERDICT_MIB)
        for name, found in (("read kernel", read), ("inductor's stage", inductor))
    ]
    pays = [f"{size} MiB" for size in VERDICT_MIB if inductor[str(size)] >= GAIN]
    conclusion = f"weights in L2 pay at {' and '.join(pays)}" if pays else "weights in L2 do not pay"
    return f"resident over HBM: {'; '.join(said)}:\n{conclusion}"


def relative_error(norm_of_difference: float, norm_of_right: float) -> float:
    """Return |result - right| / |right|; not a number stays not a number, and so never passes a bound."""
    return norm_of_difference / norm_of_right if norm_of_right else norm_of_difference


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: columns as wide as their widest cell, numbers to the right."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
