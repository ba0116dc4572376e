"""Give a model weights with which an error anywhere changes the output visibly.

Libraries draw small weights and start biases, position tables and gates at zero or one: a fault in what is multiplied
by zero passes every comparison. Here matrices keep the scale of a signal, and nothing is constant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Standard deviations of what is drawn: tables, which are added to a signal of about 1, and vectors around their value.
TABLE = 0.5
VECTOR = 0.2


def redraw(model: nn.Module, keep: Sequence[str] = ()) -> nn.Module:
    """The model, its parameters drawn again, and its buffers where they are constant; tied ones stay tied.

    Args:
        keep: patterns of the names of parameters and buffers that stay as they are.
    """
    done: set[int] = set()
    with torch.no_grad():
        for path, module in model.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                full = f"{path}.{name}"
                if id(tensor) in done or not tensor.is_floating_point() or any(re.search(p, full) for p in keep):
                    continue
                done.add(id(tensor))
                if isinstance(tensor, nn.Parameter):
                    _redraw_parameter(module, name, tensor)
                elif tensor.numel() > 1 and tensor.dim() and tensor.min() == tensor.max():
                    _vary(tensor)
    return model


def _redraw_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    fan_in = _fan_in(module, tensor)
    if fan_in is not None:
        tensor.normal_(std=math.sqrt((2.0 if tensor.dim() > 2 else 1.0) / fan_in))
        return
    center = tensor.float().mean().item()
    spread = tensor.float().std().item() if tensor.numel() > 1 else 0.0
    if "Norm" in type(module).__name__ and name == "weight" and abs(center) < 0.1:
        tensor.copy_(1 + VECTOR * torch.randn_like(tensor))
    elif spread < max(1e-3, 1e-2 * abs(center)) or (tensor.dim() > 1 and spread < 0.1):
        _vary(tensor)


def _vary(tensor: Tensor) -> None:
    """Values about the one that there is: a scale stays about as large, a gate that is almost closed opens."""
    center, noise = tensor.float().mean().item(), torch.randn(tensor.shape)
    if abs(center) > 0.05:
        tensor.copy_(center * (1 + VECTOR * noise).clamp_min(VECTOR))
    elif tensor.min() == tensor.max() and center:
        tensor.copy_(TABLE + VECTOR * noise)
    else:
        tensor.copy_((VECTOR if tensor.dim() < 2 else TABLE) * noise)


def _fan_in(module: nn.Module, tensor: Tensor) -> float | None:
    """How many values a weight sums over; None for what is not the matrix of a layer."""
    if tensor.dim() < 2:
        return None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return tensor.numel() / tensor.shape[1] / math.prod(module.stride)
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return tensor.numel() / tensor.shape[0]
    if type(module).__name__ == "Conv1D":  # that of transformers, which holds its matrix transposed
        return tensor.shape[0]
    if type(module).__name__.endswith(("Experts", "RNN", "LSTM", "GRU", "MultiheadAttention")):
        return tensor.shape[-1]
    return None
