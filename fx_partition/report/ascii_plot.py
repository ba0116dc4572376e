"""Draw a plot in plain characters: dots over a logarithmic axis, and vertical lines at marked positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fx_partition.common.units import format_bytes

# Columns and rows of the plot area; with the labels at its left a line has at most 90 characters.
_WIDTH, _HEIGHT = 80, 15
_MARGIN = 8
_STEPS = 3  # labels on the vertical axis, in addition to 0
_ROUND = (1.2, 1.5, 1.8, 2.4, 3, 4.5, 6, 7.5, 9, 12)
_OCTAVES = 2  # octaves between two labels of the horizontal axis


class Mark(NamedTuple):
    """A position on the horizontal axis, in bytes; ``line`` is the character to draw it with."""

    size: float
    label: str
    line: str


def draw(points: Sequence[tuple[float, float]], marks: Iterable[Mark]) -> tuple[str, ...]:
    """Return the lines of a plot, each of at most 100 characters.

    Args:
        points: (bytes, value), ascending in bytes, at least two; the vertical axis begins at 0.
        marks: each becomes a vertical line below its label; marks outside the range of the points are left out.
    """
    low, high = math.log2(points[0][0]), math.log2(points[-1][0])

    def column(size: float) -> int:
        return round((_WIDTH - 1) * (math.log2(size) - low) / (high - low))

    seen = sorted(mark for mark in marks if points[0][0] <= mark.size <= points[-1][0])
    labels = [[" "] * _WIDTH for _ in seen]
    area = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for number, mark in enumerate(seen):
        at = column(mark.size)
        for row in (*labels[number + 1 :], *area):
            row[at] = mark.line
        start = min(at, _WIDTH - len(mark.label))
        labels[number][start : start + len(mark.label)] = mark.label
    top = _round_up(max(value for _, value in points))
    for size, value in points:
        area[min(round(_HEIGHT * (1 - value / top)), _HEIGHT - 1)][column(size)] = "*"

    lines = [f"{'':{_MARGIN}}  {''.join(row)}" for row in labels]
    for number, row in enumerate(area):
        height = f"{top * (_HEIGHT - number) / _HEIGHT:g}" if number % (_HEIGHT // _STEPS) == 0 else ""
        lines.append(f"{height:>{_MARGIN}} |{''.join(row)}")
    ticks, names = ["-"] * _WIDTH, [" "] * (_WIDTH + _MARGIN)
    for octave in range(math.ceil(low), math.floor(high) + 1, _OCTAVES):
        at, name = column(2.0**octave), format_bytes(2**octave)
        ticks[at], names[at : at + len(name)] = "+", name
    lines += [f"{0:>{_MARGIN}} +{''.join(ticks)}", f"{'':{_MARGIN}}  {''.join(names)}"]
    return tuple(line.rstrip() for line in lines)


def _round_up(value: float) -> float:
    """Return the next number of which a third is a short number: ``_round_up(116.3) == 120``."""
    scale = 10.0 ** math.floor(math.log10(value))
    return scale * next(number for number in _ROUND if number * scale >= value)
