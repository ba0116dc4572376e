"""Which memory the operators inside a node write, seen while it runs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture.operators import schema_of
from ..capture.tensor_storage import storage_key

# Batch norms update the running mean and variance in training, and their schemas do not say so.
_STATISTICS = {f"aten::{name}_batch_norm": (("running_mean", "running_var"), "training")
               for name in ("native", "cudnn", "miopen")}  # fmt: skip


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes writes by schema.

    Attributes:
        written: keys of the memory that was written.
        reshaped: keys of the memory of tensors whose metadata was changed by an operator made for that.
        draws: whether random numbers were taken.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: set[Hashable] = set()
        self.reshaped: set[Hashable] = set()
        self.draws = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = schema_of(func)
        names = [argument.name for argument in schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        into = self.reshaped if torch.Tag.inplace_view in func.tags else self.written
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                into.update(_keys(given.get(argument.name)))  # before it runs: `set_` moves a tensor elsewhere
        result = func(*args, **(kwargs or {}))
        if schema.name in _STATISTICS:
            statistics, flag = _STATISTICS[schema.name]
            if given.get(flag):
                self.written.update(key for name in statistics for key in _keys(given.get(name)))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.draws |= "dropout_p" not in names or given.get("dropout_p", 0.0) != 0.0
        return result


def _keys(value: Any) -> list[Hashable]:
    return [storage_key(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
