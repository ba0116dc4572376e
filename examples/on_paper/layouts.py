"""Place layers on devices: tensor parallelism, partitions by layer, and partitions that fit on chip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from .decode import Kept, Model, Stage, Step, held_bytes, step


class Layout(NamedTuple):
    """``copies`` of the model, each in ``stages`` on ``width`` devices a stage."""

    copies: int
    width: int
    stages: int


def pipeline(layers: int, stages: int, width: int) -> list[Stage]:
    """Return layers in runs as equal as possible, the longer ones first; the last has the output head.

    Example::

        >>> [stage.layers for stage in pipeline(30, 16, 1)][:4], pipeline(16, 2, 8)[1]
        ([2, 2, 2, 2], Stage(layers=8, head=True, devices=8))
    """
    each, more = divmod(layers, stages)
    return [Stage(each + (at < more), at == stages - 1, width) for at in range(stages)]


def layouts(devices: int, batch: int, layers: int, heads: int) -> Iterator[Layout]:
    """Return all ways to use at most this many devices, in powers of two.

    Every copy has a sequence, every stage a layer, and every device a head.
    """
    for copies in _powers(min(devices, batch)):
        for width in _powers(min(devices // copies, heads)):
            for stages in _powers(min(devices // (copies * width), layers)):
                yield Layout(copies, width, stages)


def _powers(limit: int) -> list[int]:
    return [2**power for power in range(limit.bit_length())]


def run(model: Model, layout: Layout, batch: int, kept: Kept) -> Step | None:
    """Return a step in a layout, its batch that of all copies; None if a device's off-chip memory is too small."""
    stages = pipeline(model.shape.layers, layout.stages, layout.width)
    own = math.ceil(batch / layout.copies)
    held = max(held_bytes(model, stage, own) for stage in stages)
    if model.device.memory_bytes is not None and held > model.device.memory_bytes:
        return None
    found = step(model, stages, own, kept)
    return replace(found, batch=batch, devices=layout.copies * found.devices)


def best(model: Model, devices: int, batch: int, kept: Kept) -> tuple[Layout, Step] | None:
    """Return the layout with the shortest step; the narrower one of equals."""
    possible = layouts(devices, batch, model.shape.layers, model.shape.heads)
    found = [(layout, run(model, layout, batch, kept)) for layout in possible]
    fitting = [(layout, taken) for layout, taken in found if taken is not None]
    return min(fitting, key=lambda pair: pair[1].seconds, default=None)


def on_chip(model: Model, sequences: int) -> list[Stage]:
    """As few devices as hold weights on chip, and the KV cache of ``sequences`` (0: none), by stages of whole layers.

    As many layers a device as fit, or a layer on as many devices as it needs; the output head with the last layers
    where it fits there, else on devices of its own.

    Example::

        >>> from fx_partition import device
        >>> from .shapes import BF16, LLAMA_8B
        >>> len(on_chip(Model(LLAMA_8B, BF16, device("WSE-3"), 1024), 1))  # 16 GB of 44
        1
    """
    usable = model.device.usable_bytes
    one = held_bytes(model, Stage(1, False, 1), sequences)
    head = Stage(0, True, math.ceil(model.weight_bytes(Stage(0, True, 1)) / usable))
    if one > usable:
        return [Stage(1, False, math.ceil(one / usable))] * model.shape.layers + [head]
    each = int(usable // one)
    stages = [Stage(min(each, model.shape.layers - at), False, 1) for at in range(0, model.shape.layers, each)]
    last = Stage(stages[-1].layers, True, 1)
    return [*stages[:-1], last] if held_bytes(model, last, sequences) <= usable else [*stages, head]
