"""The contents of a report without a layout: the text and the Markdown report are the same document.

Names and expressions of the graph are between backticks (see `code`); Markdown keeps the backticks, text drops them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# The most entries that a list of the report has before it says how many more there are; JSON has them all.
MOST_POINTS = 8


@dataclass(frozen=True)
class Table:
    """Cells as text. ``numeric`` columns are aligned right; ``totals`` is the last row, or empty."""

    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A title, then a sentence, a drawing (lines of characters that keep their layout), a table and points.

    All but the title may be missing.
    """

    title: str
    lead: str = ""
    table: Table | None = None
    points: tuple[str, ...] = ()
    drawing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A report: a headline that sums it up, sections with the details, and a closing line with a caution."""

    headline: str
    sections: tuple[Section, ...]
    closing: str


def code(name: str) -> str:
    """Return a name of the graph between backticks: ``code("linear_1") == "`linear_1`"``."""
    return f"`{name}`"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``count(1, "device") == "1 device"``, ``count(3, "device") == "3 devices"``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shortened(points: Iterable[str], most: int = MOST_POINTS) -> tuple[str, ...]:
    """Return the first ``most`` points, and a last one with the number of points left out."""
    found = tuple(points)
    left = len(found) - most
    return (*found[:most], f"(+{left} more)") if left > 0 else found
