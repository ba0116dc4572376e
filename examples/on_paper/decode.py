"""Compute the seconds of a decode step: stages of whole layers, each on one device or on several that split matrices.

Terms. ``rows`` sequences pass a stage at a time (a microbatch), each ``length`` tokens long. A stage takes, by the cost
model of `fx_partition.simulator.run_time`,

    max(operations / peak, bytes on chip / on-chip bandwidth + bytes off chip / memory bandwidth) + 1.26 us a kernel
    (GPU)

and its all-reduces. Sequences wait for their own last token, so of ``groups`` microbatches in flight one token each
takes

    max(sum of all stages and hops, groups x slowest stage).

All layouts get the same favourable assumptions: weights and KV cache split evenly over the devices of a stage (by
heads, then rows or length), bandwidths and peaks are the record's, every device reaches every other at the record's
link, sampling is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fx_partition import Device, Link
from fx_partition.hardware.overheads import OVERHEADS
from fx_partition.passes.timing.partition_work import Access, AccessKind, PartitionWork
from fx_partition.simulator.run_time import Price
from fx_partition.simulator.run_time import price as price_of

from .shapes import Precision, Shape

#: Norm, queries with keys and values, rotation and cache, attention, output, sum and norm, gate and up, product, down.
LAYER_KERNELS = 9
#: More where there are experts: router, sorting of tokens, sum of experts.
EXPERT_KERNELS = 3
#: The last norm and the output matrix.
HEAD_KERNELS = 2

#: What stays on chip. "nothing": weights and cache are read from off-chip memory. "what fits": the weights of a stage
#: if they fit its devices whole, its KV cache if both do; nothing by halves, as a cache keeps little of a sweep that is
#: too large for it. "weights": reading weights costs nothing at all, which is a bound and no device.
Kept: TypeAlias = Literal["nothing", "what fits", "weights"]


@dataclass(frozen=True)
class Stage:
    """Whole layers, and the output head if ``head``, on ``devices`` that split every matrix."""

    layers: int
    head: bool
    devices: int


@dataclass(frozen=True)
class Step:
    """One token of every sequence.

    Attributes:
        seconds: a token takes, for each sequence.
        batch: sequences in flight.
        devices: of all stages.
        prices: of each stage, without links.
        links: seconds in all-reduces and hops.
        rows, groups: sequences of a microbatch, and how many microbatches.
    """

    seconds: float
    batch: int
    devices: int
    prices: tuple[Price, ...]
    links: float
    rows: int
    groups: int

    @property
    def rate(self) -> float:
        """Tokens/s of all sequences."""
        return self.batch / self.seconds


@dataclass(frozen=True)
class Model:
    """What is decoded, and on what: the arguments that all functions here share.

    Attributes:
        shape, precision: of the model.
        device: the record of every device.
        length: tokens of each sequence.
        link: between any two devices; None: the record's.
    """

    shape: Shape
    precision: Precision
    device: Device
    length: int
    link: Link | None = None

    @property
    def links(self) -> Link:
        return self.link or Link.of(self.device)

    def weight_bytes(self, stage: Stage) -> float:
        """Return the bytes on each device of a stage; an embedding table is read by rows and does not count."""
        parameters = stage.layers * self.shape.layer_parameters + stage.head * self.shape.head_parameters
        return parameters * self.precision.weight / stage.devices

    def kv_bytes(self, stage: Stage, sequences: int) -> float:
        """Return the bytes on each device of a stage."""
        return sequences * self.length * stage.layers * self.shape.kv_bytes(self.precision) / stage.devices


def all_reduce(size: float, devices: int, link: Link) -> float:
    """Return the seconds to sum ``size`` bytes over devices that all reach each other, the better of two ways.

    Each sends all to all others: one hop, (n - 1) x size. Or it sums one part and sends it on (reduce-scatter,
    all-gather): two hops and 2 (n - 1) / n x size, the bytes of a ring (nccl-tests, doc/PERFORMANCE.md); a ring takes 2
    (n - 1) hops.

    Example::

        >>> all_reduce(800, 8, Link(1.0, 100.0))
        16.0
    """
    if devices == 1:
        return 0.0
    beta = 1 / link.bandwidth if link.bandwidth else 0.0
    once = link.latency + (devices - 1) * size * beta
    return min(once, 2 * link.latency + 2 * (devices - 1) / devices * size * beta)


def stage_price(model: Model, stage: Stage, rows: int, sequences: int, kept: Kept) -> Price:
    """Return the price of one run of a stage on each of its devices, without links.

    Args:
        model, stage: what runs.
        rows: sequences that run.
        sequences: all that are in flight, whose KV cache the devices hold.
        kept: what stays on chip.

    Raises:
        ValueError: the device has no memory but the one on chip, and that does not hold the stage.
    """
    shape, width = model.shape, model.precision.weight
    parts = stage.devices
    weights = (stage.layers * shape.touched_parameters(rows) + stage.head * shape.head_parameters) * width / parts
    cache = model.kv_bytes(stage, rows)
    # Activations are bf16 whatever the weights are, and never leave the chip.
    head_values = stage.head * (shape.hidden + shape.vocabulary / parts)
    values = rows * (stage.layers * shape.layer_activations(parts) + head_values)
    held = held_bytes(model, stage, sequences)
    if kept == "weights":
        weights, moved = 0.0, cache
    elif kept == "what fits" and held <= model.device.usable_bytes:
        moved = 0.0
    elif kept == "what fits" and model.weight_bytes(stage) <= model.device.usable_bytes:
        moved = cache
    else:
        moved = weights + cache
    if moved and not model.device.memory_bandwidth:
        raise ValueError(
            f"{model.device.name} has no off-chip memory, and a stage of {model.shape.name} needs {held / 2**20:.0f} "
            "MiB "
            "a device; use more devices, or fewer or shorter sequences"
        )
    kernels = stage.layers * (LAYER_KERNELS + (EXPERT_KERNELS if shape.experts > 1 else 0)) + stage.head * HEAD_KERNELS
    flops = rows * (stage.layers * shape.layer_flops(model.length) + stage.head * 2 * shape.head_parameters) / parts
    touched = [
        ("weights", weights, AccessKind.WEIGHT),
        ("cache", cache, AccessKind.READ),
        ("values", 2 * values, AccessKind.WRITE),
    ]
    accesses = tuple(Access((name, 0), round(size), how) for name, size, how in touched)
    work = PartitionWork(accesses, frozenset(), round(flops), kernels, kernels)
    return price_of(model.device, work, moved, OVERHEADS[model.device.kind])


def held_bytes(model: Model, stage: Stage, sequences: int) -> float:
    """Return the bytes of weights and KV cache on each device of a stage."""
    return model.weight_bytes(stage) + model.kv_bytes(stage, sequences)


def step(model: Model, stages: Sequence[Stage], batch: int, kept: Kept, groups: int | None = None) -> Step:
    """Return one token of each of ``batch`` sequences that pass the stages one after another.

    Args:
        model, stages: what runs where.
        batch: sequences in flight.
        kept: what stays on chip.
        groups: microbatches; None: one a stage, or as many as there are sequences if these are fewer.
    """
    groups = groups or min(batch, len(stages))
    rows = math.ceil(batch / groups)
    size = rows * model.shape.hidden * 2
    cost = {stage: stage_price(model, stage, rows, batch, kept) for stage in set(stages)}
    prices = tuple(cost[stage] for stage in stages)
    sums = [2 * stage.layers * all_reduce(size, stage.devices, model.links) for stage in stages]
    # The last hop brings the chosen tokens, a few bytes, back to the first stage.
    hops = (len(stages) - 1) * model.links.seconds(size) + model.links.latency if len(stages) > 1 else 0.0
    each = [price.seconds + links for price, links in zip(prices, sums, strict=True)]
    seconds = max(sum(each) + hops, groups * max(each))
    devices = sum(stage.devices for stage in stages)
    return Step(seconds, batch, devices, prices, sum(sums) + hops, rows, groups)
