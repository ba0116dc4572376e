"""Put all weights of a module into one buffer, over which a persistence window can lie."""

from __future__ import annotations

import torch
from torch import nn

from fx_partition.backends.cuda.weight_buffer import Pack


def pack_module(module: nn.Module, device: torch.device) -> Pack:
    """Replace the data of all parameters and buffers by views of one buffer, which the returned pack holds."""
    tensors = [*module.parameters(), *module.buffers()]
    pack = Pack([tensor.detach() for tensor in tensors], device)
    for tensor, view in zip(tensors, pack.tensors, strict=True):
        tensor.data = view
    return pack
