"""Make the fake inputs that a stage is compiled for: on its device, with the strides that they really have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.fake_tensors import fake_mode_of

from .boundary_strides import Crossings
from .graph_edits import shares_memory
from .stage import Stage


def stage_inputs(stage: Stage, real: Mapping[torch.fx.Node, Any], crossings: Crossings) -> list[Any]:
    """Return the fake value of every input of a stage, on the stage's device.

    Args:
        real: the real inputs of the whole graph. They decide whether a gradient is needed, as a fake input may have
            changed in Dynamo's trace (after an in-place update by a tensor that needs a gradient, it needs one too).
        crossings: the values that cross boundaries; the stages before this one are settled.
    """
    inputs = []
    for node in stage.partition.inputs:
        value = value_of(node)
        if not isinstance(value, torch.Tensor):
            inputs.append(value if value is not None else real[node])
            continue
        needs_grad = real[node].requires_grad if node in real else value.requires_grad
        device = stage.place(value)
        elsewhere = not shares_memory(device, value.device)
        value = crossings.value(node)
        if not elsewhere and value.is_leaf and value.requires_grad == needs_grad:
            inputs.append(value)  # itself, as it has notes: for example the symbol of its item()
            continue
        with fake_mode_of([value]), torch.no_grad():
            fake = value.detach()
            if elsewhere:
                fake = fake.to(device)
        inputs.append(fake.requires_grad_(needs_grad))
    return inputs
