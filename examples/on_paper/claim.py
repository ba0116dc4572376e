"""The paper's experiment: what it claims, what fits, what a step takes, and how much free weight reads could gain."""

from __future__ import annotations

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
    """A model of the experiment on the H100."""
    return Model(shape, BF16, H100, length)


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], **options: Any) -> str:
    return tabulate(rows, headers, **{"disable_numparse": True, "stralign": "right", **options})


def taken(found: Step | None) -> Step:
    """A step that is known to fit the devices' memory."""
    assert found is not None
    return found


def claim() -> str:
    """What the paper says, and what its numbers can mean."""
    rows = []
    for name, before, after, ms, ms_after in CLAIMS:
        times = "-" if ms is None else f"{ms} -> {ms_after}"
        step_ms = f"{1e3 * BATCH / before:.2f} -> {1e3 * BATCH / after:.2f}"
        rows.append((name, f"{before:,} -> {after:,}", f"{after / before - 1:.0%}", times, f"{1e3 / before:.3f}", step_ms))
    headers = ("claimed", "tokens/s", "gain", "TPOT, ms", "1 / (tokens/s), ms", f"{BATCH} / (tokens/s), ms")
    least = floor_seconds()
    return "\n".join(
        (
            "The claim",
            table(rows, headers),
            f"A TPOT of 0.078 ms with {BATCH} sequences would be {BATCH / 0.078e-3:,.0f} tokens/s; 12,800 is 1 / 0.078 ms. Either the rate "
            "is that of",
            f"one sequence, or the time is a step's divided by the batch. The first cannot be: to read the weights once, {DEVICES} "
            "H100 take",
            f"{1e3 * least:.2f} ms at {H100.memory_bandwidth / 1e12:.2f} TB/s each, {least / 0.078e-3:.0f} times 0.078 ms, and "
            f"{1e3 * least * H100.memory_bandwidth / H100.onchip_bandwidth:.2f} ms even at the bandwidth of their L2. So a step takes "
            f"{1e3 * BATCH / 12_800:.0f} ms.",
        )
    )


def floor_seconds() -> float:
    """To read every weight of the dense model once, all devices at once, nothing else."""
    return weights(PAPER_DENSE) / DEVICES / H100.memory_bandwidth


def weights(shape: Shape) -> float:
    """Bytes that a step of many tokens reads: all but the embedding table."""
    return model(shape).weight_bytes(Stage(shape.layers, True, 1))


def shapes() -> str:
    """The chosen shapes."""
    rows = []
    for shape in (PAPER_DENSE, PAPER_MOE):
        experts = f"{shape.active} of {shape.experts}" if shape.experts > 1 else "-"
        sizes = (shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads, shape.head, shape.vocabulary, experts)
        rows.append((shape.name, *sizes, f"{shape.parameters / 1e9:.1f}", f"{2 * shape.parameters / 1e9:.1f}"))
    headers = ("chosen", "layers", "hidden", "ffn", "heads", "KV heads", "head", "vocabulary", "experts", "1e9 weights", "GB")
    return f"The shapes (the paper states none)\n{table(rows, headers)}"


def needed() -> str:
    """What is to be held, what 16 devices hold, and how many would."""
    rows = []
    for shape in (PAPER_DENSE, PAPER_MOE):
        chosen = model(shape)
        cache = chosen.kv_bytes(Stage(shape.layers, False, 1), BATCH)
        for what, size, sequences in (("weights", weights(shape), 0), ("weights and KV", weights(shape) + cache, BATCH)):
            count = sum(stage.devices for stage in on_chip(chosen, sequences))
            share = DEVICES * H100.usable_bytes / size
            rows.append((shape.name, what, f"{size / 1e9:.1f}", f"{size / (DEVICES * NOMINAL):.0f}", f"{share:.2%}", f"{count:,}"))
    usable = H100.usable_bytes
    headers = ("model", "to be held", "GB", "times 16 x 50 MB", "share that 16 x 36 MiB hold", "H100 needed")
    return "\n".join(
        (
            f"What fits ({BATCH} sequences of {LENGTH:,} tokens; the embedding table, read by rows, is not counted)",
            table(rows, headers),
            f"16 x 50 MB are {DEVICES * NOMINAL / 1e9:.2f} GB; of the {H100.onchip_bytes / 2**20:.0f} MiB a device {usable / 2**20:.0f} are "
            f"usable ({H100.figures['usable_bytes'].confidence} from measurements of the PCIe card), {DEVICES * usable / 1e9:.2f} GB in all.",
        )
    )


def causes(chosen: Model, layout: Layout, batch: int) -> dict[str, float]:
    """Seconds of a step by cause, everything read from off-chip memory."""
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
    """A step of the experiment in three layouts, by cause, beside one whose weight reads are free."""
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
    return "\n".join(
        (
            f"A step ({BATCH} sequences of {LENGTH:,} tokens, 16 H100, milliseconds by cause; bound: the gain if weight reads were free)",
            table(rows, headers),
            "Waiting: the last stage has the output head too, and the others wait for it. A microbatch reads all weights of a stage.",
            f"The claimed {CLAIMS[0][1]:,} tokens/s are {CLAIMS[0][1] / base.rate:.2f} of what the model gives TP=8 x PP=2.",
        )
    )


def held_gain(chosen: Model, layout: Layout, batch: int) -> float:
    """The gain if what 16 devices can hold, ideally pinned, were free of all weight reads."""
    found = taken(run(chosen, layout, batch, "nothing"))
    share = min(1.0, DEVICES * H100.usable_bytes / weights(chosen.shape))
    return found.seconds / (found.seconds - share * causes(chosen, layout, batch)["weights"])


def bound() -> str:
    """How the bound on the gain depends on KV heads and length, and what a fifth more takes."""
    rows = []
    for heads in (1, 8, 16, 32, 96):
        for length in (1_000, LENGTH):
            chosen = model(PAPER_DENSE.with_kv_heads(heads), length)
            found, free = (taken(run(chosen, TENSOR, BATCH, kept)) for kept in ("nothing", "weights"))
            cache = chosen.kv_bytes(Stage(chosen.shape.layers, False, 1), BATCH)
            share = found.seconds * (1 - 1 / 1.2) / causes(chosen, TENSOR, BATCH)["weights"]
            size = f"{share * weights(chosen.shape) / 1e9:.1f}" if found.seconds / free.seconds >= 1.2 else "none"
            rows.append(
                (heads, f"{length:,}", f"{cache / 1e9:.1f}", f"{1e3 * found.seconds:.2f}", f"{found.seconds / free.seconds:.2f}",
                 size, f"{held_gain(chosen, TENSOR, BATCH):.3f}")
            )  # fmt: skip
    headers = ("KV heads", "length", "KV, GB", "ms a token", "bound", "GB free for 1.20", "gain of 16 x 36 MiB")
    return "\n".join(
        (
            f"The bound, TP=8 x PP=2, dense, {BATCH} sequences: (weights + KV + rest) / (KV + rest)",
            table(rows, headers),
            "At 1,000 tokens what remains is arithmetic. None: no free weight read gives 1.20. The last column takes the usable",
            "bytes for pinned and free; by the hit curve a sweep of gigabytes keeps nothing.",
        )
    )


def losing() -> str:
    """Partitions by layer against the tensor-parallel layout of as many devices."""
    rows = []
    for batch, length in ((1, LENGTH), (16, LENGTH), (BATCH, LENGTH), (2048, 500)):
        chosen = model(length=length)
        tensor, layers = (taken(run(chosen, layout, batch, "nothing")) for layout in (TENSOR, LAYERWISE))
        free = taken(run(chosen, LAYERWISE, batch, "weights"))
        full = step(chosen, on_chip(chosen, 0), batch, "what fits")
        rows.append(
            (batch, f"{length:,}", f"{layers.groups} x {layers.rows}", *(f"{1e3 * found.seconds:.2f}" for found in (tensor, layers)),
             f"{tensor.seconds / layers.seconds:.2f}", f"{1e3 * free.seconds:.2f}", f"{full.devices:,}", f"{1e3 * full.seconds:.2f}")
        )  # fmt: skip
    headers = (
        "batch", "length", "microbatches", "TP=8 x PP=2, ms", "layer-wise, ms", "gain", "its weights free, ms", "H100 to hold them",
        "on these, ms",
    )  # fmt: skip
    return "\n".join(
        (
            "Where partitions by layer lose (dense, 16 H100, milliseconds a token)",
            table(rows, headers),
            "A lone sequence waits for all stages in turn, one device at a time; several read the weights once a microbatch.",
        )
    )


def figures(folder: Path) -> None:
    """Write the figures of the steps and of the bound."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3))
    labels, left = [], [0.0] * 6
    found = []
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
    axes.legend(loc="upper right")
    save(figure, folder, "paper_step")

    figure, axes = plt.subplots(figsize=(7, 3.4))
    lengths = [round(100 * 10 ** (at / 12)) for at in range(37)]
    for heads, style in zip((1, 8, 32, 96), ("-", "--", "-.", ":"), strict=True):
        chosen = [replace(model(PAPER_DENSE.with_kv_heads(heads)), length=length) for length in lengths]
        pairs = [[run(each, TENSOR, BATCH, kept) for kept in ("nothing", "weights")] for each in chosen]
        gains = [(length, a.seconds / b.seconds) for length, (a, b) in zip(lengths, pairs, strict=True) if a and b]
        axes.plot(*zip(*gains, strict=True), style, label=f"{heads} KV heads: all weight reads free")
    gains = [held_gain(replace(model(), length=length), TENSOR, BATCH) for length in lengths]
    axes.plot(lengths, gains, color="black", label="16 x 36 MiB of them free")
    axes.axhline(1.2, color="#7F7F7F", linewidth=1)
    axes.text(lengths[0], 1.24, "claimed: 1.20", color="#555555")
    axes.axvline(LENGTH, color="#7F7F7F", linewidth=1)
    axes.set(xscale="log", xlabel="tokens of each sequence", ylabel="bound on the gain", ylim=(0.9, None))
    axes.legend()
    save(figure, folder, "paper_bound")
