"""Measured points and predicted lines, milliseconds against N, a panel for each number of devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fx_partition.report.figures import save

from .accuracy import Predicted
from .rows import Row

_COLOURS = {"single": "C0", "balanced": "C0", "equal_layers": "C1"}


def draw(rows: Sequence[Row], predicted: Predicted, path: Path) -> None:
    """Write the figure; the same rows give the same bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for tpus, axes in enumerate(panels.flat, 1):
        for segmentation, colour in _COLOURS.items():
            of = sorted(row for row in rows if (row.tpus, row.segmentation) == (tpus, segmentation))
            if not of:
                continue
            name = segmentation.replace("_", " ")
            axes.plot([row.hidden for row in of], [predicted[row.name] for row in of], color=colour, linewidth=1,
                      label=f"{name}, predicted")  # fmt: skip
            for inferred, marker, more in ((False, "o", ""), (True, "x", ", cut inferred from the time")):
                points = [row for row in of if row.inferred is inferred]
                if points:
                    axes.scatter([row.hidden for row in points], [row.ms for row in points], s=9, marker=marker,
                                 color=colour, linewidths=0.8, label=f"{name}, measured{more}")  # fmt: skip
        axes.set_yscale("log")
        axes.set_title(f"{tpus} device{'s' if tpus > 1 else ''}", fontsize=10)
        axes.grid(which="major", alpha=0.3)
        axes.legend(fontsize=7)
    figure.supxlabel("N")
    figure.supylabel("ms of an inference")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
