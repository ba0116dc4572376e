"""Compare Llama-3's shapes on chip and streamed, in devices, latency and throughput, as tables."""

from __future__ import annotations

from collections.abc import Callable

from tabulate import tabulate

from fx_partition import Device, Link, device

from .decode import Model, Step, step
from .layouts import Layout, on_chip, run
from .search import record, resident, streamed
from .shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B, PRECISIONS, Precision, Shape

SHAPES = (LLAMA_8B, LLAMA_70B, LLAMA_405B)
DEVICES = ("H100-SXM", "B200", "MI300X", "EPYC9684X-CCD", "GroqLPU1")
LENGTH = 8192
ONE, MANY = 1, 32
#: What streams where a device has no memory to stream from.
STAND_IN = "H100-SXM"


def streamer(found: Device) -> Device:
    """Return the device that streams in a comparison with ``found``."""
    return found if found.memory_bandwidth else device(STAND_IN)


def narrowest(model: Model, batch: int) -> Step:
    """Tensor parallelism over 8 devices, or as few more, in powers of two, as memory asks for."""
    width = 8
    while (found := run(model, Layout(1, width, 1), batch, "nothing")) is None:
        width *= 2
    return found


def compare(shape: Shape, precision: Precision, name: str, batch: int) -> tuple[Step, Step, Step]:
    """On chip; streamed on as many devices; streamed by tensor parallelism on eight or a few more."""
    found = record(name)
    kept = resident(Model(shape, precision, found, LENGTH), batch)
    other = Model(shape, precision, streamer(found), LENGTH)
    wide, narrow = streamed(other, batch, kept.devices), narrowest(other, batch)
    # A few devices with much on chip may be too few to hold the model in the memory of the one that stands in.
    return kept, wide or narrow, narrow


def grid(cell: Callable[[Shape, Precision, str], str], title: str) -> str:
    """Return a table of models by devices."""
    rows = [
        (shape.name, precision.name, *(cell(shape, precision, name) for name in DEVICES))
        for shape in SHAPES
        for precision in PRECISIONS.values()
    ]
    return f"{title}\n{tabulate(rows, ('model', 'weights', *DEVICES), disable_numparse=True, stralign='right')}"


def counts() -> str:
    """Return the number of devices that hold each model."""

    def cell(shape: Shape, precision: Precision, name: str) -> str:
        model = Model(shape, precision, record(name), LENGTH)
        numbers = (sum(stage.devices for stage in on_chip(model, sequences)) for sequences in (0, ONE, MANY))
        return " / ".join(f"{number:,}" for number in numbers)

    title = f"Devices needed on chip: weights / and the KV cache of {ONE} sequence of {LENGTH:,} tokens / of {MANY}"
    return grid(cell, title)


def latency() -> str:
    """Return the milliseconds a token of a lone sequence."""

    def cell(shape: Shape, precision: Precision, name: str) -> str:
        return " / ".join(f"{1e3 * found.seconds:.2f}" for found in compare(shape, precision, name, ONE))

    ways = "on chip / streamed, as many devices / streamed, TP=8"
    title = f"Milliseconds a token, {ONE} sequence of {LENGTH:,} tokens: {ways}"
    return f"{grid(cell, title)}\n{NOTE}"


def throughput() -> str:
    """Return tokens/s of a device for many sequences."""

    def cell(shape: Shape, precision: Precision, name: str) -> str:
        found = compare(shape, precision, name, MANY)
        return " / ".join(f"{each.rate / each.devices:,.1f}" for each in found)

    title = f"Tokens a second and device, {MANY} sequences of {LENGTH:,} tokens; columns as above"
    return grid(cell, title)


NOTE = (
    f"TP=16 or 32 where the memory of 8 is too small. {DEVICES[-1]} has no memory to stream from: {STAND_IN} does it "
    "in its "
    "place."
)


def hops() -> str:
    """What an accelerator's hop matters, where the record has no figure of its own."""
    rows = []
    for latency in (device("GroqLPU1").link_latency, 1e-6):
        for shape in SHAPES:
            model = Model(shape, PRECISIONS["fp8"], device("GroqLPU1"), LENGTH, Link(latency))
            found = step(model, on_chip(model, ONE), ONE, "what fits")
            share = found.links / found.seconds
            times = (f"{1e3 * found.seconds:.2f}", f"{share:.0%}")
            rows.append((f"{1e6 * latency:g}", shape.name, f"{found.devices:,}", *times))
    headers = ("hop, us", "model", "devices", "ms a token", "in links")
    title = (
        f"GroqLPU1, fp8, {ONE} sequence of {LENGTH:,} tokens: the record's hop is that of GPUs without peer access, as "
        "no "
        "figure is\nknown; 1 us is a hop between TPUs"
    )
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True, stralign='right')}"
