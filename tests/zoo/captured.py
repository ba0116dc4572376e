"""Graphs of the zoo's models, as the passes see them."""

from __future__ import annotations

import torch

from fx_partition.passes.capture import Captured, capture
from fx_partition.passes.facts import Facts
from fx_partition.passes.gather import gather_facts

from . import FAMILIES


def captured_family(name: str) -> tuple[Captured, Facts]:
    """The exported graph of a model for a batch of two, and its facts."""
    family = FAMILIES[name]
    args, kwargs = family.inputs(2)
    captured = capture(torch.export.export(family.build(), args, kwargs, strict=False))
    return captured, gather_facts(captured)
