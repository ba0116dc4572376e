"""What a stage is compiled with: fake values of its inputs, on its device, with the strides that they really have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.fake_tensors import FakeTensor

from .boundary_strides import Crossings
from .graph_edits import shares_memory
from .stage import Stage


def stage_inputs(
    stage: Stage, real: Mapping[torch.fx.Node, Any], crossings: Crossings
) -> list[Any]:
    """What to compile a stage with: the fake value of every input, on the stage's device.

    Args:
        real: the real inputs of the whole graph. A fake may have been changed while Dynamo traced (an in-place update
            by something that needs a gradient makes it need one); the real one tells.
        crossings: what arrives, with its strides; the stages before are settled.
    """
    inputs = []
    for node in stage.stub.inputs:
        value = value_of(node)
        if not isinstance(value, torch.Tensor):
            inputs.append(value if value is not None else real[node])
            continue
        needs_grad = real[node].requires_grad if node in real else value.requires_grad
        device = stage.place(value)
        elsewhere = not shares_memory(device, value.device)
        value = crossings.value(node)
        if not elsewhere and value.is_leaf and value.requires_grad == needs_grad:
            inputs.append(value)  # itself: it remembers which symbol its item() is
            continue
        assert isinstance(value, FakeTensor)
        with value.fake_mode, torch.no_grad():
            fake = value.detach()
            if elsewhere:
                fake = fake.to(device)
        inputs.append(fake.requires_grad_(needs_grad))
    return inputs
