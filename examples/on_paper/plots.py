"""Figures for the docs: the same file every time they are drawn, and colours that all eyes tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Okabe and Ito's colours, black and yellow left out: blue, orange, green, vermilion, purple, sky blue, grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F")


def pyplot() -> Any:
    """matplotlib.pyplot, set up for files that do not differ from run to run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.pyplot as plt
        from cycler import cycler
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "fx-partition[plot]"') from error
    matplotlib.use("svg")
    plt.rcParams.update(matplotlib.rcParamsDefault)
    plt.rcParams.update(
        {
            "svg.hashsalt": "fx-partition", "figure.constrained_layout.use": True, "figure.facecolor": "white",
            "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
            "axes.grid": True, "grid.color": "#DDDDDD", "axes.axisbelow": True, "legend.frameon": False,
            "axes.prop_cycle": cycler(color=COLOURS),
        }
    )  # fmt: skip
    return plt


def save(figure: Any, folder: Path, name: str) -> None:
    """Write ``folder/name.svg``, without the date that would make it differ, and close the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    pyplot().close(figure)
