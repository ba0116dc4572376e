"""Save figures that are the same bytes each time: matplotlib's SVG without the parts that differ from run to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix; an SVG keeps its text as text, and has no date and no random names.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "fx-partition", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
