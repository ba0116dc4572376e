"""The measured rows: networks, how they were cut, milliseconds."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

MIB = 2**20
LAYERS = 5


class Row(NamedTuple):
    """One measurement: milliseconds of an inference, and the layers of each segment.

    ``inferred``: whether the cut was found from the time, as the memory columns describe another (see `read`).
    """

    hidden: int
    tpus: int
    segmentation: str
    cut: tuple[int, ...]
    ms: float
    inferred: bool = False

    @property
    def name(self) -> tuple[int, int, str]:
        return self[:3]


class Layer(nn.Module):
    """An int8 layer whose weight has 64, 128, .. rows: the device's compiler rounds them up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.zeros(-(-outputs // 64) * 64, inputs, dtype=torch.int8)
        self.outputs, self.weight = outputs, nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)[:, : self.outputs]


def network(hidden: int) -> nn.Sequential:
    """Return the layers of 64 -> N -> N -> N -> N -> 10."""
    return nn.Sequential(Layer(64, hidden), *(Layer(hidden, hidden) for _ in range(3)), Layer(hidden, 10))


def sizes(hidden: int) -> list[float]:
    """Return the MiB of each layer's weight."""
    return [layer.weight.nbytes / MIB for layer in network(hidden)]


def read(path: Path) -> list[Row]:
    """Return the rows except the profiled ones, which were chosen by measuring.

    The memory columns say how a network was cut. On two devices, balanced, from N = 2020 on they describe layers 0-3
    and 4, of which 8 MiB and more would be fetched: 22 ms and more. The times are of a cut of which one layer is
    fetched, as when the largest segment is as small as possible; that cut is taken for these rows.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["segmentation"] != "profiled"]
    return [_row(row) for row in rows]


def _row(row: Mapping[str, str]) -> Row:
    hidden, tpus, segmentation = int(row["hidden"]), int(row["tpus"]), row["segmentation"]
    on, off = (np.atleast_1d(json.loads(row[column])) for column in ("onchip_mib", "offchip_mib"))
    layers = sizes(hidden)
    inferred = segmentation == "balanced" and tpus == 2 and hidden >= 2020
    if inferred:
        cut = min(cuts(tpus), key=lambda cut: max(parts(layers, cut)))
    else:
        cut = min(cuts(tpus), key=lambda cut: np.abs(np.array(parts(layers, cut)) - (on + off)).sum())
        assert np.allclose(parts(layers, cut), on + off, rtol=0.03), row
    return Row(hidden, tpus, segmentation, cut, float(row["ms_per_inference"]), inferred)


def cuts(tpus: int) -> Iterator[tuple[int, ...]]:
    """Return all ways to cut the layers, as the number of layers in each segment."""
    for inner in itertools.combinations(range(1, LAYERS), tpus - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *inner, LAYERS)))


def parts(layers: Sequence[float], cut: Sequence[int]) -> list[float]:
    """Return the sum of each segment."""
    ends = itertools.accumulate(cut)
    return [sum(layers[end - count : end]) for count, end in zip(cut, ends, strict=True)]


def fetched(layers: Sequence[float], cut: Sequence[int], usable: float) -> list[float]:
    """What of each segment is not on chip: layers that do not fit, each taken in order, whole or not at all."""
    found = []
    for count, end in zip(cut, itertools.accumulate(cut), strict=True):
        room, off = usable, 0.0
        for size in layers[end - count : end]:
            room, off = (room - size, off) if size <= room else (room, off + size)
        found.append(off)
    return found
