"""The tensors that the stages of a rank hold for those of the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..devices.home_device import place


class Owner:
    """Gives each stage of a rank a parameter of its own; all that stand for one weight share its memory.

    Args:
        home: the device of the model.
        device: where the rank runs; None: where each tensor is.
    """

    def __init__(self, home: torch.device, device: torch.device | None) -> None:
        self._home, self._device = home, device
        self._moved: dict[int, torch.Tensor] = {}
        self._taken: set[int] = set()

    def next_stage(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes the tensors of one more stage: equal ones for equal ones, and the model's own if they may be."""
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
