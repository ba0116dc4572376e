"""Draw when on-chip partitioning wins: speed of one sequence against tokens/s of a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from fx_partition import Link

from .decode import Model, Step, step
from .layouts import layouts, on_chip, run
from .plots import COLOURS, pyplot, save
from .scale import DEVICES, LENGTH, STAND_IN, streamer
from .search import record
from .shapes import LLAMA_70B, PRECISIONS

SHAPE, PRECISION = LLAMA_70B, PRECISIONS["fp8"]
BATCHES = tuple(2**power for power in range(11))
MOST = 4096  # devices


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point beats in both, sorted by the first.

    Example::

        >>> pareto([(1, 5), (2, 3), (1.5, 2), (3, 1)])
        [(1, 5), (2, 3), (3, 1)]
    """
    front: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def front(steps: Iterable[Step]) -> list[tuple[float, float]]:
    """Return tokens/s of a sequence and of a device, for the steps that none beats in both."""
    return pareto((1 / found.seconds, found.rate / found.devices) for found in steps)


def streaming(model: Model) -> Iterator[Step]:
    """Return every layout of one copy; more copies change neither figure."""
    for layout in layouts(MOST, 1, model.shape.layers, model.shape.heads):
        for batch in BATCHES:
            if found := run(model, layout, batch, "nothing"):
                yield found


def holding(model: Model) -> Iterator[Step]:
    """On as few devices as hold it and on twice and four times as many, with the KV cache on chip or in memory."""
    for batch in BATCHES:
        for sequences in {batch, 0 if model.device.memory_bandwidth else batch}:
            for times in (1, 2, 4):
                stages = [replace(stage, devices=times * stage.devices) for stage in on_chip(model, sequences)]
                if sum(stage.devices for stage in stages) <= MOST:
                    yield step(model, stages, batch, "what fits")


def frontier_figure(folder: Path) -> None:
    """Write what both ways can do, a panel for each device."""
    plt = pyplot()
    figure, panels = plt.subplots(2, 3, figsize=(8, 5))
    last = panels.flat[-1]
    for name, axes in zip(DEVICES, panels.flat, strict=False):
        found = record(name)
        model, other = (Model(SHAPE, PRECISION, each, LENGTH) for each in (found, streamer(found)))
        stand_in = "" if other.device is found else f" (streamed: {STAND_IN})"
        lines = [("streamed from memory", "o--", COLOURS[0], other), ("weights on chip", "s-", COLOURS[3], model)]
        if stand_in:
            lines.append(("on chip, hop of 1 us", "^:", COLOURS[2], replace(model, link=Link(1e-6))))
        for label, style, colour, each in lines:
            points = front((streaming if each is other else holding)(each))
            axes.plot(*zip(*points, strict=True), style, color=colour, ms=3, label=label)
        # Two decades of speed and three of throughput: who gets less has no interest in the figure.
        right, top = 2 * axes.dataLim.x1, 2 * axes.dataLim.y1
        axes.set(title=name + stand_in, xscale="log", yscale="log", xlim=(right / 200, right), ylim=(top / 2000, top))
    last.set_axis_off()
    last.legend(*axes.get_legend_handles_labels(), loc="upper left")
    note = (
        f"Llama-3-70B, fp8, {LENGTH:,} tokens.\nAlong a line, from left to right:\nfewer sequences, more devices\n"
        f"(at most {MOST:,}). Further right and\nfurther up is better."
    )
    last.text(0.04, 0.1, note, transform=last.transAxes)
    figure.supxlabel("tokens/s of one sequence", fontsize=9)
    figure.supylabel("tokens/s of a device", fontsize=9)
    save(figure, folder, "scale_frontier")
