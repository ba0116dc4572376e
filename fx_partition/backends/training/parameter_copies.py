"""The parameters and buffers of a rank's stages: the model's own, or copies of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..devices.home_device import place


class ParameterCopies:
    """Gives each stage of a rank its own parameters; those of one weight share its memory.

    Args:
        home: the device of the model.
        device: where the rank runs; None: each tensor stays where it is.
    """

    def __init__(self, home: torch.device, device: torch.device | None) -> None:
        self._home, self._device = home, device
        self._moved: dict[int, torch.Tensor] = {}
        self._taken: set[int] = set()

    def next_stage(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function from the model's tensors to those of the next stage.

        The first stage that reads a weight gets the model's own parameter, or its copy on ``device``; each later stage
        gets a new parameter over the same memory. Within a stage, one weight is one parameter.
        """
        own: dict[int, torch.Tensor] = {}

        def owned(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in own:
                here = self._here(tensor)
                is_second = id(tensor) in self._taken and isinstance(here, nn.Parameter)
                own[id(tensor)] = _parameter(here.detach(), tensor) if is_second else here
                self._taken.add(id(tensor))
            return own[id(tensor)]

        return owned

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device is None or (device := place(tensor.device, self._home, self._device)) == tensor.device:
            return tensor
        if id(tensor) not in self._moved:
            moved = tensor.detach().to(device)
            self._moved[id(tensor)] = _parameter(moved, tensor) if isinstance(tensor, nn.Parameter) else moved
        return self._moved[id(tensor)]


def _parameter(data: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=like.requires_grad)
