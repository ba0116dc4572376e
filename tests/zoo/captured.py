"""Graphs of the zoo's models, as the passes see them."""

from __future__ import annotations

import torch

from fx_partition.passes.capture.capture_model import CapturedGraph, capture
from fx_partition.passes.footprint.analyze import gather_facts
from fx_partition.passes.footprint.graph_memory import GraphMemory

from . import FAMILIES


def captured_family(name: str) -> tuple[CapturedGraph, GraphMemory]:
    """The exported graph of a model for a batch of two, and its facts."""
    family = FAMILIES[name]
    args, kwargs = family.inputs(2)
    captured = capture(torch.export.export(family.build(), args, kwargs, strict=False))
    return captured, gather_facts(captured)
