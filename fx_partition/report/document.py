"""What a report says, before it is laid out: the text and the Markdown report are the same document.

Names and expressions of the graph stand between backticks (see `code`); Markdown keeps them, text drops them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# What the report lists of a kind before it says how many more there are; JSON has them all.
MOST_POINTS = 8


@dataclass(frozen=True)
class Table:
    """Cells as text. ``numeric`` columns are set to the right; ``totals`` is the last row, or empty."""

    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A title, then a sentence, a drawing (lines of characters that stay as they are), a table and points.

    Each but the title may be missing.
    """

    title: str
    lead: str = ""
    table: Table | None = None
    points: tuple[str, ...] = ()
    drawing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A report: the headline for a glance, the sections for a study, the closing line for a caution."""

    headline: str
    sections: tuple[Section, ...]
    closing: str


def code(name: str) -> str:
    """A name of the graph, marked as such: ``code("linear_1") == "`linear_1`"``."""
    return f"`{name}`"


def count(number: int, noun: str, plural: str = "") -> str:
    """``count(1, "device") == "1 device"`` and ``count(3, "device") == "3 devices"``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shortened(points: Iterable[str], most: int = MOST_POINTS) -> tuple[str, ...]:
    """The first ``most`` points, and a last one that says how many were left out."""
    found = tuple(points)
    left = len(found) - most
    return (*found[:most], f"(+{left} more)") if left > 0 else found
