"""Composite operators that do in place, in eager, what they do in new memory while a dispatch mode looks on.

ATen's composites ask whether a mode or a subclass is there, and if so they avoid to write to what they have made::

    linear(x, w, b), with x neither flat nor contiguous:    y = matmul(x, w.t());  y = y + b      # seen by a mode
                                                            y = matmul(x, w.t());  y.add_(b)      # in eager

So the memory that a mode sees is not that of eager. `SumsInPlace` says when such an operator runs, and `as_in_eager`
which operator eager calls then.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# ATen/native/Linear.cpp, linear; transformers/attention.cpp, _scaled_dot_product_attention_math (the mask); RNN.cpp
# calls the first.
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
    """Knows whether one of these operators is running.

    Attributes:
        depth: how many of them are, one in another.
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
    """The operator that eager calls in place of ``func``: a sum written over its first operand, or ``func`` itself.

    Args:
        func, args: a call inside one of these operators.
        made: ids of the storages that the operator has made.
    """
    if func is torch.ops.aten.add.Tensor and id(args[0].untyped_storage()) in made:
        return torch.ops.aten.add_.Tensor
    return func
