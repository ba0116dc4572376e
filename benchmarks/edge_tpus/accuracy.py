"""Compare predictions and choices with measurements, in words and tables."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from tabulate import tabulate

from .predictions import FITTED, Choice
from .rows import Row

Predicted = Mapping[tuple[int, int, str], float]


def spills(row: Row) -> bool:
    """No network that is held takes a millisecond and a half."""
    return row.ms > 1.5


def kind(row: Row) -> str:
    return f"{row.tpus} {row.segmentation}, {'spills' if spills(row) else 'fits'}"


def errors(rows: Sequence[Row], predicted: Predicted) -> list[float]:
    return [abs(predicted[row.name] / row.ms - 1) for row in rows]


def medians(rows: Sequence[Row], predicted: Predicted) -> tuple[float, float]:
    """Return the median error of all rows, and of those that spill."""
    over = [row for row in rows if spills(row)]
    return statistics.median(errors(rows, predicted)), statistics.median(errors(over, predicted))


def misranked(
    rows: Sequence[Row], predicted: Predicted, alike: Callable[[Row, Row], bool]
) -> tuple[list[tuple[Row, Row]], int]:
    """Pairs that differ by more than 20% and are predicted the other way round, or alike; and how many pairs differ."""
    pairs = [
        (a, b) if a.ms < b.ms else (b, a)
        for a, b in itertools.combinations(rows, 2)
        if alike(a, b) and max(a.ms, b.ms) > 1.2 * min(a.ms, b.ms)
    ]
    return [(a, b) for a, b in pairs if predicted[a.name] >= predicted[b.name]], len(pairs)


def every_row(rows: Sequence[Row], predicted: Predicted) -> str:
    table = [
        (*row.name, "-".join(map(str, row.cut)), row.ms, f"{predicted[row.name]:.4f}",
         f"{predicted[row.name] / row.ms - 1:+.1%}", "fitted" if row.name in FITTED else "",
         "inferred" if row.inferred else "")
        for row in rows
    ]  # fmt: skip
    headers = ["N", "devices", "segmentation", "layers", "measured, ms", "predicted, ms", "error", "", "cut"]
    return tabulate(table, headers=headers)


def judged(rows: Sequence[Row], predicted: Predicted, chosen: Sequence[Choice]) -> tuple[str, list[str]]:
    """Return the text on rows that were not fitted and on choices, and the missed targets."""
    held_out = [row for row in rows if row.name not in FITTED]
    same, of_same = misranked(held_out, predicted, lambda a, b: a.hidden == b.hidden)
    beyond = [c for c in chosen if any(spills(r) for r in rows if r.hidden == c.hidden and r.tpus == 1)]
    planned = [c.hidden for c in beyond if c.planned != c.measured]
    spilling = [(c.hidden, c.spills) for c in chosen if c.spills]
    middle = medians(held_out, predicted)
    lines = [_errors(held_out, predicted), "", *_inferred(rows, held_out, predicted), ""]
    lines += [*_pairs(held_out, predicted, len(same), of_same), ""]
    simulated = sum(c.simulated != c.measured for c in beyond)
    fits = [c for c in chosen if c not in beyond]
    lines += [
        f"{len(beyond)} networks that one device spills: the planner takes another number of devices than the measured "
        f"best in {len(planned)}, the fastest simulated cut in {simulated}.",
        f"{len(fits)} that it holds: another number in {sum(c.planned != c.measured for c in fits)} and "
        f"{sum(c.simulated != c.measured for c in fits)}.",
        f"Of {4 * len(chosen)} plans for one to four devices, {len(spilling)} spill where another cut would not.",
    ]
    targets = {
        "median error <= 5%": middle[0] > 0.05, "median error <= 5% where it spills": middle[1] > 0.05,
        "pairs of one network": same, "number of devices": planned, "no needless spill": spilling,
    }  # fmt: skip
    return "\n".join(lines), [name for name, bad in targets.items() if bad]


def _errors(held_out: Sequence[Row], predicted: Predicted) -> str:
    groups: dict[str, list[Row]] = {"all": list(held_out), "all that spill": [r for r in held_out if spills(r)]}
    for row in held_out:
        groups.setdefault(kind(row), []).append(row)
    table = [(name, len(group), *_spread(errors(group, predicted))) for name, group in groups.items()]
    return tabulate(table, headers=["held out", "rows", "median error", "90th percentile", "largest"])


def _spread(found: Sequence[float]) -> Iterator[str]:
    return (f"{number:.1%}" for number in (statistics.median(found), np.quantile(found, 0.9), max(found)))


def _inferred(rows: Sequence[Row], held_out: Sequence[Row], predicted: Predicted) -> list[str]:
    """Return the text on the rows that are left without those whose cut was found from their times."""
    certain = [row for row in held_out if not row.inferred]
    middle = medians(certain, predicted)
    return [
        f"Of {sum(row.inferred for row in rows)} rows the cut was inferred from the measured times, as the table's "
        f"memory columns contradict them; {len(held_out) - len(certain)} are held out.",
        f"Without these: {len(certain)} rows, median error {middle[0]:.1%}; {sum(map(spills, certain))} that spill, "
        f"{middle[1]:.1%}.",
    ]


def _pairs(held_out: Sequence[Row], predicted: Predicted, wrong: int, of_same: int) -> list[str]:
    any_pair, of_any = misranked(held_out, predicted, lambda a, b: True)
    noise = sum(kind(a) == kind(b) == "1 single, fits" for a, b in any_pair)
    return [
        f"Pairs that differ by more than 20%: of one network {of_same}, ranked wrongly {wrong};",
        f"of any two networks {of_any}, ranked wrongly {len(any_pair)}, {noise} of them with one device that fits.",
    ]
