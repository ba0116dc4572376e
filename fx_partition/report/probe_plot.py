"""Plot a probe as PNG or SVG, with matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fx_partition.common.units import format_bytes
from fx_partition.hardware.probe import Probe

from .figures import save
from .probe_document import marks

_SUFFIXES = (".png", ".svg")


def check_plot(path: str | Path) -> None:
    """Raise an error if `plot_probe` cannot write to a path, so that a command fails before it measures.

    Raises:
        ValueError: the suffix is not .png or .svg, the folder does not exist, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"a plot cannot be written to {path}: its suffix must be .png or .svg")
    if not path.parent.is_dir():
        raise ValueError(f"a plot cannot be written to {path}: there is no folder {path.parent}; make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('a plot needs matplotlib, which is not installed: pip install "fx-partition[plot]"')


def plot_probe(probe: Probe, path: str | Path) -> None:
    """Write a plot of bandwidth (GB/s, of one core) against working set, with nominal sizes and knees.

    The same probe gives the same bytes of an SVG.

    Args:
        probe: the result of `fx_partition.probe`.
        path: a file that ends in .png or .svg.

    Raises:
        ValueError: as for `check_plot`, or the file cannot be written.

    Example::

        >>> fx_partition.plot_probe(fx_partition.probe(), "caches.svg")  # doctest: +SKIP
    """
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([size for size, _ in probe.points], [rate / 1e9 for _, rate in probe.points], marker=".", color="C0")
    for number, mark in enumerate(marks(probe), 1):
        dashes = "dotted" if mark.line == ":" else "solid"
        axes.axvline(mark.size, color=f"C{number}", linestyle=dashes, label=mark.label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(round(size))))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("working set")
    axes.set_ylabel("GB/s that one core reads")
    axes.legend()
    try:
        save(figure, Path(path))
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name another file") from error
