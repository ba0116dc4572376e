"""One stage of a pipeline on GPUs: its code, what it takes and what it makes."""

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
        device: where it runs.
        function: compiled code that takes the inputs in order and returns the outputs in order.
        inputs: numbers of values in the request's table, or weights on the model's own device. A weight that the
            function writes is written where the stage keeps it: in its pack, or in the model's own where that is used.
        outputs: numbers of the values that it makes.
        last_uses: values that no later stage takes, and no result is.
        static: shapes are static, so that it may be captured in a CUDA graph.
        takes_on_host, makes_on_host: positions of the inputs and outputs that are on the host although the stage is
            not; such a stage is not static.
    """

    device: torch.device
    function: Callable[..., Sequence[Any]]
    inputs: tuple[int | Tensor, ...]
    outputs: tuple[int, ...]
    last_uses: tuple[int, ...]
    static: bool
    takes_on_host: frozenset[int] = frozenset()
    makes_on_host: frozenset[int] = frozenset()
