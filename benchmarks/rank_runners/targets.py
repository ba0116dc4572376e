"""What is asked of the distributed runtime, and whether measured rows fulfil it.

A ratio is taken within a round; its figure is the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtimes.models import Case

OURS, OTHER = "l2partition", "torch pipelining"
LEAST_THROUGHPUT, MOST_HOP = 1.0, 1.2
HOP_WAYS = ("bare", "team", "call")


@dataclass(frozen=True)
class Row:
    """A case as measured.

    Attributes:
        rates: calls a second, of each side in each round.
        latencies: seconds of one call, of each side in each round.
    """

    case: Case
    ranks: int
    microbatches: int
    rates: Mapping[str, Sequence[float]]
    latencies: Mapping[str, Sequence[float]]

    @property
    def name(self) -> str:
        return f"{self.case.kind}, {self.ranks} ranks, {self.microbatches} microbatches"

    @property
    def throughput(self) -> float:
        """Our rate over the other's."""
        return ratio(self.rates[OURS], self.rates[OTHER])

    @property
    def latency(self) -> float:
        """Our time over the other's."""
        return ratio(self.latencies[OURS], self.latencies[OTHER])


@dataclass(frozen=True)
class HopRow:
    """A tensor's way from rank to rank: seconds of a hop, of each way in each round."""

    nbytes: int
    seconds: Mapping[str, Sequence[float]]

    def ratio(self, way: str) -> float:
        """The time of a way over that of bare sends."""
        return ratio(self.seconds[way], self.seconds["bare"])


@dataclass(frozen=True)
class Verdict:
    """A target, the figure that decides it, and where that was measured."""

    words: str
    bound: str
    value: float
    where: str
    met: bool


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios within a round.

    Example: the machine was slow in the second round, for both::

        >>> ratio([30, 3, 30], [20, 2, 20])
        1.5
    """
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def judge(rows: Sequence[Row], hops: Sequence[HopRow]) -> list[Verdict]:
    """Every target that has rows; the worst one decides."""
    verdicts = []
    if rows:
        value, where = min((row.throughput, row.name) for row in rows)
        met = value >= LEAST_THROUGHPUT
        verdicts.append(Verdict("throughput, of torch pipelining", f">= {LEAST_THROUGHPUT:g}", value, where, met))
    words = {"team": "hop of the runtime, of bare sends", "call": "hop in a compiled call, of bare sends"}
    for way in words if hops else ():
        value, nbytes = max((row.ratio(way), row.nbytes) for row in hops)
        verdicts.append(Verdict(words[way], f"<= {MOST_HOP:g}", value, f"{nbytes} bytes", value <= MOST_HOP))
    return verdicts
