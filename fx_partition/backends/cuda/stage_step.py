"""One stage of a pipeline on GPUs: its code, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CudaStep:
    """One stage.

    Attributes:
        device: where the stage runs.
        function: its compiled code, from the inputs in order to the outputs in order.
        inputs: numbers of values in the request's table, or weights on the model's own device. If the function writes a
            weight, it writes the stage's copy: the one in its pack, or the model's own tensor where the stage uses it.
        outputs: numbers of its results.
        last_uses: numbers of the values that neither a later stage nor a result of the request needs.
        static: whether its shapes are static, and it may be captured in a CUDA graph of its own.
        inputs_on_host, outputs_on_host: positions of the inputs and outputs on the host, although the stage runs on a
            GPU; such a stage is not static.
        computes_on_host: whether it computes anything on the host: a graph would replay what the host computed during
            the capture.
    """

    device: torch.device
    function: Callable[..., Sequence[Any]]
    inputs: tuple[int | Tensor, ...]
    outputs: tuple[int, ...]
    last_uses: tuple[int, ...]
    static: bool
    inputs_on_host: frozenset[int] = frozenset()
    outputs_on_host: frozenset[int] = frozenset()
    computes_on_host: bool = False

    @property
    def weights(self) -> dict[int, Tensor]:
        """The weights that the stage has on its device, by the position of the input."""
        return {i: x for i, x in enumerate(self.inputs) if isinstance(x, Tensor) and i not in self.inputs_on_host}
