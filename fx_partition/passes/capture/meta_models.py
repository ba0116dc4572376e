"""Let a model on the device "meta" be captured as if it were on a CPU, without memory for its weights.

Kernels are chosen by device, and those of "meta" are none that runs anywhere: its attention, for example, makes the
whole matrix of scores. A fake tensor on the CPU has no memory either, and is traced as a CPU tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from .fake_tensors import FakeTensorMode, ShapeEnv, new_fake_mode


def is_on_meta(model: torch.nn.Module) -> bool:
    """Return whether a parameter or buffer of a model is on the device "meta"."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def to_fake_cpu(model: torch.nn.Module, inputs: Any) -> Any:
    """Move the meta tensors of a model to fake tensors on the CPU, in place, and return the inputs moved alike.

    A parameter at several places of the model stays one parameter.

    Args:
        model: the model; pass a copy to keep the original.
        inputs: tensors in any pytree.

    Example::

        >>> model = torch.nn.Linear(4, 4, device="meta")
        >>> x = to_fake_cpu(model, torch.zeros(2, 4, device="meta"))
        >>> model.weight.device, x.device
        (device(type='cpu'), device(type='cpu'))
    """
    mode = new_fake_mode(ShapeEnv())
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        for name, parameter in own.items():
            if parameter.is_meta:
                if id(parameter) not in moved:
                    fake = _fake(parameter, mode)
                    moved[id(parameter)] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
                setattr(module, name, moved[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if buffer.is_meta:
                moved.setdefault(id(buffer), _fake(buffer, mode))
                setattr(module, name, moved[id(buffer)])
    return pytree.tree_map(
        lambda leaf: _fake(leaf, mode) if isinstance(leaf, torch.Tensor) and leaf.is_meta else leaf, inputs
    )


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
