"""Search models, batches, lengths and devices for a gain of a fifth on chip, against the best layout that streams."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from tabulate import tabulate

from fx_partition import Device, device
from fx_partition.hardware.overheads import OVERHEADS

from .decode import Model, Step, step
from .layouts import best, on_chip
from .plots import pyplot, save
from .shapes import BF16, LLAMA_1B, LLAMA_3B, LLAMA_8B, PAPER_DENSE, SMOL_135M, SMOL_360M, Precision, Shape

DEVICES = ("H100-SXM", "B200", "MI300X", "L40S", "EPYC9684X-CCD")
SIZES = (SMOL_135M, SMOL_360M, LLAMA_1B, LLAMA_3B, LLAMA_8B, replace(PAPER_DENSE, name="30B"))
CASES = tuple((batch, length) for batch in (1, 16, 128) for length in (128, 1_000, 10_000))
GAIN = 1.2


def record(name: str) -> Device:
    """The record of a device; a die of a processor gets its share of what all twelve have when all are at work."""
    found = device(name)
    if name != "EPYC9684X-CCD":
        return found
    whole = device("EPYC9684X")
    return replace(found, memory_bandwidth=whole.memory_bandwidth / 12, onchip_bandwidth=whole.onchip_bandwidth / 12)


def resident(model: Model, batch: int) -> Step:
    """Return the shorter step of two: weights and KV cache on chip, or weights alone and the cache from memory."""
    sequences = (batch, 0) if model.device.memory_bandwidth else (batch,)
    steps = [step(model, on_chip(model, held), batch, "what fits") for held in sequences]
    return min(steps, key=lambda found: found.seconds)


def streamed(model: Model, batch: int, devices: int) -> Step | None:
    """Return the shortest step that reads all from off-chip memory; None if the devices are too small."""
    found = best(model, devices, batch, "nothing")
    return found[1] if found else None


def gain(shape: Shape, precision: Precision, record: Device, batch: int, length: int) -> tuple[float, int] | None:
    """How many times faster on chip is than the best that streams on as many devices, and how many these are."""
    model = Model(shape, precision, record, length)
    kept = resident(model, batch)
    other = streamed(model, batch, kept.devices)
    same = step(model, on_chip(model, 0), batch, "nothing")
    return (min(other.seconds, same.seconds) / kept.seconds, kept.devices) if other else None


@cache
def found() -> dict[tuple[str, str], list[tuple[float, int] | None]]:
    """Return the gains of `CASES` by device and model."""
    return {
        (name, shape.name): [gain(shape, BF16, record(name), *case) for case in CASES]
        for name in DEVICES
        for shape in SIZES
    }


def search() -> str:
    """Return the gains as a table."""
    rows, reached = [], dict.fromkeys(DEVICES, 0)
    for (name, size), gains in found().items():
        reached[name] += sum(cell is not None and cell[0] >= GAIN for cell in gains)
        cells = ["-" if cell is None else f"{cell[0]:.2f}{'*' if cell[0] >= GAIN else ''}" for cell in gains]
        counts = [cell[1] for cell in gains if cell]
        rows.append((name, size, f"{min(counts):,} to {max(counts):,}", *cells))
    headers = ("device", "model", "devices", *(f"{batch} x {length:,}" for batch, length in CASES))
    each = len(SIZES) * len(CASES)
    counted = ", ".join(f"{count} of {each} on {name}" for name, count in reached.items())
    launch = OVERHEADS["gpu"].launch * device("H100-SXM").memory_bandwidth / 1e6
    return "\n".join(
        (
            "Where a gain of 20% is reached (bf16; columns: batch x length; all weights on chip, on as few devices as "
            "that",
            "takes, against the best layout that streams on as many; *: 1.20 and more)",
            tabulate(rows, headers, disable_numparse=True, stralign="right"),
            f"Reached: {counted}.",
            f"A launch takes as long as reading {launch:.1f} MB from the memory of an H100.",
        )
    )


def search_figure(folder: Path) -> None:
    """Write the gains of one sequence of 1,000 tokens by size of the model."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.4))
    at = CASES.index((1, 1_000))
    gains = found()
    for name, marker in zip(DEVICES, "osD^v", strict=True):
        points = [(2 * shape.parameters / 1e9, cell[0]) for shape in SIZES if (cell := gains[name, shape.name][at])]
        axes.plot(*zip(*points, strict=True), marker=marker, label=name)
    axes.axhline(GAIN, color="#7F7F7F", linewidth=1)
    axes.set(
        xscale="log", yscale="log", xlabel="weights in bf16, GB", ylabel="gain over the best that streams",
        title="One sequence of 1,000 tokens, as many devices on both sides",
    )  # fmt: skip
    axes.set_yticks([1, 1.2, 2, 4, 8], ["1", "1.2", "2", "4", "8"])
    axes.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    axes.minorticks_off()
    axes.legend()
    save(figure, folder, "paper_search")
