"""The targets of the runtime, and whether rows of the benchmark meet them.

A ratio is that of rates within a round, of ours to another's; its figure is the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .models import Case
from .workers import ALL, AUTO, GPIPE, ONE, REPLICAS


@dataclass(frozen=True)
class Row:
    """A case as measured.

    Attributes:
        weight_bytes: of its weights.
        rates: requests a second, of each way in each round.
        latencies: seconds of one request, of each way in each round.
    """

    case: Case
    weight_bytes: int
    rates: Mapping[str, Sequence[float]]
    latencies: Mapping[str, Sequence[float]]

    def ratio(self, ours: str, others: Sequence[str]) -> float:
        """Return our rate over the best of the others."""
        best = map(max, zip(*(self.rates[name] for name in others), strict=True))
        return statistics.median(rate / other for rate, other in zip(self.rates[ours], best, strict=True))


@dataclass(frozen=True)
class Target:
    """At least ``floor`` times the best of ``others`` in each row that ``applies``; ``best_of``: in one of them."""

    words: str
    floor: float
    others: tuple[str, ...]
    applies: Callable[[Row, int], bool]
    best_of: bool = False


def fits(row: Row, usable: int) -> bool:
    return row.weight_bytes <= usable


def half_fits(row: Row, usable: int) -> bool:
    """Half of it does, and the whole does not."""
    return usable < row.weight_bytes <= 2 * usable


def one_row(row: Row, usable: int) -> bool:
    return row.case.batch == 1


TARGETS = (
    Target("where everything fits, of the better of replicas and one core", 0.9, (REPLICAS, ONE), fits),
    Target("where a half fits, of replicas", 1.0, (REPLICAS,), half_fits),
    Target("where a half fits, of replicas, at best", 1.15, (REPLICAS,), half_fits, best_of=True),
    Target("where everything fits, of torch.distributed.pipelining", 3.0, (GPIPE,), fits),
    Target("batch 1, of inductor on all cores", 2.0, (ALL,), one_row),
)


@dataclass(frozen=True)
class Verdict:
    """A target against rows; ``value`` is the ratio that decides, and ``where`` its case."""

    target: Target
    value: float
    where: str
    reached: int
    rows: int

    @property
    def met(self) -> bool:
        return self.value >= self.target.floor


def judge(rows: Sequence[Row], usable: int) -> list[Verdict]:
    """Return the verdict of every target that has rows, for the automatic way, which users get."""
    verdicts = []
    for target in TARGETS:
        ratios = [(row.ratio(AUTO, target.others), row.case.name) for row in rows if target.applies(row, usable)]
        if ratios:
            value, where = max(ratios) if target.best_of else min(ratios)
            reached = sum(ratio >= target.floor for ratio, _ in ratios)
            verdicts.append(Verdict(target, value, where, reached, len(ratios)))
    return verdicts
