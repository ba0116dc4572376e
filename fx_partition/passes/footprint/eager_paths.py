"""Replay composite operators that eager runs in place, but that allocate new memory under a dispatch mode.

If a mode or a tensor subclass is active, ATen's composites do not write to their own intermediates::

    linear(x, w, b), with x neither flat nor contiguous:    y = matmul(x, w.t());  y = y + b      # under a mode
                                                            y = matmul(x, w.t());  y.add_(b)      # in eager

So the memory under a mode is not that of eager. `SumsInPlace` knows when such an operator runs, and `as_in_eager`
returns the operator that eager calls instead.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# From ATen/native/Linear.cpp, linear, which RNN.cpp calls; and transformers/attention.cpp,
# _scaled_dot_product_attention_math, which adds the mask.
_OPERATORS = frozenset(
    {
        "_scaled_dot_product_attention_math",
        "gru",
        "linear",
        "lstm",
        "rnn_relu",
        "rnn_tanh",
        "scaled_dot_product_attention",
    }
)


class SumsInPlace(TorchFunctionMode):
    """A mode that knows whether one of these operators is running.

    Attributes:
        depth: how many of them are running, one inside another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inside = getattr(func, "__name__", "").partition(".")[0] in _OPERATORS
        self.depth += inside
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.depth -= inside


def as_in_eager(func: Any, args: tuple[Any, ...], made: Collection[int]) -> Any:
    """Return the operator that eager calls instead of ``func``: an add in place, or ``func`` itself.

    Args:
        func, args: a call inside one of these operators.
        made: ids of the storages that the operator has made.
    """
    if func is torch.ops.aten.add.Tensor and id(args[0].untyped_storage()) in made:
        return torch.ops.aten.add_.Tensor
    return func
