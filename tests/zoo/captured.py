"""Captured graphs of the zoo's models."""

from __future__ import annotations

import torch

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory

from . import FAMILIES


def captured_family(name: str) -> tuple[CapturedGraph, GraphMemory]:
    """The exported graph of a model for a batch of two, and its memory."""
    family = FAMILIES[name]
    args, kwargs = family.inputs(2)
    captured = capture(torch.export.export(family.build(), args, kwargs, strict=False))
    return captured, analyze_memory(captured)
