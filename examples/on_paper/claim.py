"""Check the paper's experiment on paper: its claim, what fits, the time of a step, the gain of free weight reads."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fx_partition import device

from .decode import Model, Stage, Step, step
from .layouts import Layout, on_chip, run
from .plots import pyplot, save
from .shapes import BF16, PAPER_DENSE, PAPER_MOE, Shape

H100 = device("H100-SXM")
DEVICES, BATCH, LENGTH = 16, 128, 10_000
NOMINAL = 50 * 10**6  # what the paper counts on chip
TENSOR, WIDE, LAYERWISE = Layout(1, 8, 2), Layout(1, 16, 1), Layout(1, 1, 16)
NAMES = {TENSOR: "TP=8 x PP=2", WIDE: "TP=16", LAYERWISE: "layer-wise"}
#: (model, tokens/s before and after, ms a token before and after).
CLAIMS = (("dense", 12_800, 15_360, 0.078, 0.065), ("MoE", 10_200, 13_400, None, None))
CAUSES = ("weights", "KV cache", "on chip", "arithmetic", "launches", "links", "waiting")


def model(shape: Shape = PAPER_DENSE, length: int = LENGTH) -> Model:
    """Return a model of the experiment on the H100."""
    return Model(shape, BF16, H100, length)


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], **options: Any) -> str:
    return tabulate(rows, headers, **{"disable_numparse": True, "stralign": "right", **options})


def prose(text: str) -> str:
    return textwrap.fill(text, 118)


def taken(found: Step | None) -> Step:
    """Return a step that is known to fit the devices' memory."""
    assert found is not None
    return found


def claim() -> str:
    """Return what the paper claims, and what its numbers can mean."""
    rows = []
    for name, before, after, ms, ms_after in CLAIMS:
        times = "-" if ms is None else f"{ms} -> {ms_after}"
        step_ms = f"{1e3 * BATCH / before:.2f} -> {1e3 * BATCH / after:.2f}"
        rates = (f"{before:,} -> {after:,}", f"{after / before - 1:.0%}")
        rows.append((name, *rates, times, f"{1e3 / before:.3f}", step_ms))
    headers = ("claimed", "tokens/s", "gain", "TPOT, ms", "1 / (tokens/s), ms", f"{BATCH} / (tokens/s), ms")
    least, ratio = floor_seconds(), H100.memory_bandwidth / H100.onchip_bandwidth
    text = (
        f"A TPOT of 0.078 ms with {BATCH} sequences would be {BATCH / 0.078e-3:,.0f} tokens/s; 12,800 is 1 / 0.078 ms. "
        "Either "
        "the rate is that of one sequence, or the time is a step's divided by the batch. The first cannot be: to read "
        "the "
        f"weights once, {DEVICES} H100 take {1e3 * least:.2f} ms at {H100.memory_bandwidth / 1e12:.2f} TB/s each, "
        f"{least / 0.078e-3:.0f} times 0.078 ms, and {1e3 * least * ratio:.2f} ms even at the bandwidth of their L2. "
        "So a step "
        f"takes {1e3 * BATCH / 12_800:.0f} ms."
    )
    return f"The claim\n{table(rows, headers)}\n{prose(text)}"


def floor_seconds() -> float:
    """Return the seconds to read every weight of the dense model once, on all devices at once, and nothing else."""
    return weights(PAPER_DENSE) / DEVICES / H100.memory_bandwidth


def weights(shape: Shape) -> float:
    """Return the bytes that a step of many tokens reads: all but the embedding table."""
    return model(shape).weight_bytes(Stage(shape.layers, True, 1))


def shapes() -> str:
    """Return the table of the chosen shapes."""
    rows = []
    for shape in (PAPER_DENSE, PAPER_MOE):
        experts = f"{shape.active} of {shape.experts}" if shape.experts > 1 else "-"
        widths = (shape.hidden, shape.ffn, shape.heads, shape.kv_heads, shape.head, shape.vocabulary)
        totals = (f"{shape.parameters / 1e9:.1f}", f"{2 * shape.parameters / 1e9:.1f}")
        rows.append((shape.name, shape.layers, *widths, experts, *totals))
    sizes = ("layers", "hidden", "ffn", "heads", "KV heads", "head", "vocabulary", "experts")
    headers = ("chosen", *sizes, "1e9 weights", "GB")
    return f"The shapes (the paper states none)\n{table(rows, headers)}"


def needed() -> str:
    """Return the bytes to hold, those that 16 devices hold, and the number of devices that would."""
    rows = []
    for shape in (PAPER_DENSE, PAPER_MOE):
        chosen = model(shape)
        cache = chosen.kv_bytes(Stage(shape.layers, False, 1), BATCH)
        alone = weights(shape)
        for what, size, sequences in (("weights", alone, 0), ("weights and KV", alone + cache, BATCH)):
            count = sum(stage.devices for stage in on_chip(chosen, sequences))
            times, share = size / (DEVICES * NOMINAL), DEVICES * H100.usable_bytes / size
            rows.append((shape.name, what, f"{size / 1e9:.1f}", f"{times:.0f}", f"{share:.2%}", f"{count:,}"))
    usable = H100.usable_bytes
    headers = ("model", "to be held", "GB", "times 16 x 50 MB", "share that 16 x 36 MiB hold", "H100 needed")
    text = (
        f"16 x 50 MB are {DEVICES * NOMINAL / 1e9:.2f} GB; of the {H100.onchip_bytes / 2**20:.0f} MiB a device "
        f"{usable / 2**20:.0f} are usable ({H100.figures['usable_bytes'].confidence} from measurements of the PCIe "
        "card), "
        f"{DEVICES * usable / 1e9:.2f} GB in all. The embedding table, read by rows, is not counted."
    )
    return f"What fits ({BATCH} sequences of {LENGTH:,} tokens)\n{table(rows, headers)}\n{prose(text)}"


def causes(chosen: Model, layout: Layout, batch: int) -> dict[str, float]:
    """Return the seconds of a step by cause, with everything read from off-chip memory."""
    found, free = taken(run(chosen, layout, batch, "nothing")), taken(run(chosen, layout, batch, "weights"))
    cache = sum(price.offchip for price in free.prices)
    parts = {
        "weights": sum(price.offchip for price in found.prices) - cache,
        "KV cache": cache,
        "on chip": sum(price.onchip for price in found.prices),
        "arithmetic": sum(max(0.0, price.arithmetic - price.onchip - price.offchip) for price in found.prices),
        "launches": sum(price.overhead for price in found.prices),
        "links": found.links,
    }
    return {**parts, "waiting": found.seconds - sum(parts.values())}


def steps() -> str:
    """Return a step of the experiment in three layouts, by cause, with the gain if weight reads were free."""
    rows = []
    for shape in (PAPER_DENSE, PAPER_MOE):
        for layout in (TENSOR, WIDE, LAYERWISE):
            found, free = (taken(run(model(shape), layout, BATCH, kept)) for kept in ("nothing", "weights"))
            parts = [f"{1e3 * part:.2f}" for part in causes(model(shape), layout, BATCH).values()]
            rows.append(
                (shape.name, NAMES[layout], f"{found.groups} x {found.rows}", *parts, f"{1e3 * found.seconds:.2f}",
                 f"{found.rate:,.0f}", f"{1e3 * free.seconds:.2f}", f"{found.seconds / free.seconds:.2f}")
            )  # fmt: skip
    base = taken(run(model(), TENSOR, BATCH, "nothing"))
    headers = ("model", "layout", "microbatches", *CAUSES, "ms a token", "tokens/s", "weights free, ms", "bound")
    text = (
        "Milliseconds by cause; bound: the gain if weight reads were free. Waiting: the last stage has the output head "
        "too, and "
        "the others wait for it. Each microbatch reads all weights of a stage. "
        f"The claimed {CLAIMS[0][1]:,} tokens/s are {CLAIMS[0][1] / base.rate:.2f} of what the model gives TP=8 x PP=2."
    )
    return f"A step ({BATCH} sequences of {LENGTH:,} tokens, 16 H100)\n{table(rows, headers)}\n{prose(text)}"


def held_gain(chosen: Model, layout: Layout, batch: int) -> float:
    """Return the gain if the bytes that 16 devices can hold, ideally pinned, were free of all weight reads."""
    found = taken(run(chosen, layout, batch, "nothing"))
    share = min(1.0, DEVICES * H100.usable_bytes / weights(chosen.shape))
    return found.seconds / (found.seconds - share * causes(chosen, layout, batch)["weights"])


def bound() -> str:
    """Return how the bound on the gain depends on KV heads and length, and what a gain of a fifth needs."""
    rows = []
    for heads in (1, 8, 16, 32, 96):
        for length in (1_000, LENGTH):
            chosen = model(PAPER_DENSE.with_kv_heads(heads), length)
            found, free = (taken(run(chosen, TENSOR, BATCH, kept)) for kept in ("nothing", "weights"))
            cache = chosen.kv_bytes(Stage(chosen.shape.layers, False, 1), BATCH)
            share = found.seconds * (1 - 1 / 1.2) / causes(chosen, TENSOR, BATCH)["weights"]
            size = f"{share * weights(chosen.shape) / 1e9:.1f}" if found.seconds / free.seconds >= 1.2 else "none"
            gains = (f"{found.seconds / free.seconds:.2f}", size, f"{held_gain(chosen, TENSOR, BATCH):.3f}")
            rows.append((heads, f"{length:,}", f"{cache / 1e9:.1f}", f"{1e3 * found.seconds:.2f}", *gains))
    headers = ("KV heads", "length", "KV, GB", "ms a token", "bound", "GB free for 1.20", "gain of 16 x 36 MiB")
    title = f"The bound, TP=8 x PP=2, dense, {BATCH} sequences: (weights + KV + rest) / (KV + rest)"
    text = (
        "At 1,000 tokens most of what remains is arithmetic. None: no free weight read gives 1.20. The last column "
        "takes the "
        "usable bytes for pinned and free; by the hit curve a sweep of gigabytes keeps nothing."
    )
    return f"{title}\n{table(rows, headers)}\n{prose(text)}"


def losing() -> str:
    """Return partitions by layer against the tensor-parallel layout of as many devices."""
    rows = []
    for batch, length in ((1, LENGTH), (16, LENGTH), (BATCH, LENGTH), (2048, 500)):
        chosen = model(length=length)
        tensor, layers = (taken(run(chosen, layout, batch, "nothing")) for layout in (TENSOR, LAYERWISE))
        free = taken(run(chosen, LAYERWISE, batch, "weights"))
        full = step(chosen, on_chip(chosen, 0), batch, "what fits")
        both = (f"{1e3 * tensor.seconds:.2f}", f"{1e3 * layers.seconds:.2f}", f"{tensor.seconds / layers.seconds:.2f}")
        rest = (f"{1e3 * free.seconds:.2f}", f"{full.devices:,}", f"{1e3 * full.seconds:.2f}")
        rows.append((batch, f"{length:,}", f"{layers.groups} x {layers.rows}", *both, *rest))
    sizes = ("batch", "length", "microbatches", "TP=8 x PP=2, ms", "layer-wise, ms", "gain")
    headers = (*sizes, "its weights free, ms", "H100 to hold them", "on these, ms")
    title = "Where partitions by layer lose (dense, 16 H100, milliseconds a token)"
    text = (
        "A lone sequence waits for all stages in turn, one device at a time; several read the weights once a "
        "microbatch. On "
        "devices that hold all weights, a layer is split over as many as it needs, and the KV cache comes from memory."
    )
    return f"{title}\n{table(rows, headers)}\n{prose(text)}"


def figures(folder: Path) -> None:
    """Write the figures of the steps and of the bound."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3))
    labels, found, left = [], [], [0.0] * 6
    for shape in (PAPER_DENSE, PAPER_MOE):
        for layout in (TENSOR, WIDE, LAYERWISE):
            labels.append(f"{shape.name}, {NAMES[layout]}")
            found.append(causes(model(shape), layout, BATCH))
    for cause in CAUSES:
        widths = [1e3 * parts[cause] for parts in found]
        if max(widths) > 0.005:
            axes.barh(labels, widths, left=left, label=cause)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(f"ms a token of {BATCH} sequences of {LENGTH:,} tokens, 16 H100, by the model")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=len(CAUSES))
    save(figure, folder, "paper_step")

    figure, axes = plt.subplots(figsize=(7, 3.4))
    lengths = [round(100 * 10 ** (at / 12)) for at in range(37)]
    for heads, style in zip((1, 8, 32, 96), ("-", "--", "-.", ":"), strict=True):
        chosen = [replace(model(PAPER_DENSE.with_kv_heads(heads)), length=length) for length in lengths]
        pairs = [[run(each, TENSOR, BATCH, kept) for kept in ("nothing", "weights")] for each in chosen]
        gains = [(length, a.seconds / b.seconds) for length, (a, b) in zip(lengths, pairs, strict=True) if a and b]
        axes.plot(*zip(*gains, strict=True), style, label=f"KV heads: {heads}")
    held = [held_gain(replace(model(), length=length), TENSOR, BATCH) for length in lengths]
    axes.plot(lengths, held, color="black", label="16 x 36 MiB free")
    axes.axhline(1.2, color="#7F7F7F", linewidth=1)
    axes.text(lengths[0], 1.24, "claimed: 1.20", color="#555555")
    axes.axvline(LENGTH, color="#7F7F7F", linewidth=1)
    axes.set(xscale="log", xlabel="tokens of each sequence", ylabel="bound on the gain", ylim=(0.9, None))
    axes.set_title(f"TP=8 x PP=2 on 16 H100, {BATCH} sequences: the gain if all weight reads were free")
    figure.legend(loc="outside right center")
    save(figure, folder, "paper_bound")
