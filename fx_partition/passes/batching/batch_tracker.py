"""Track the position of the batch in every tensor while a graph runs on fakes; see `batch_dim` for the terms.

Before: operators run, and nothing says which rows go into their results. After: `Tracker.place` returns the position of
the batch in every tensor, and the first operator that mixes rows has raised `NotSeparable`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture.fake_tensors import FakeTensor
from ..capture.operators import schema_of, storage_number
from ..capture.symbolic_sizes import to_expr
from ..capture.tensor_subclasses import any_subclass, is_subclass, plain_tensors
from .batch_dim import Batched, NotSeparable, Place, RowCall, fits, has
from .op_rules import NUMBERED, RULES, SIZES, pointwise

# Operators whose results follow from the shape of a tensor.
_METADATA = ("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "device", "layout", "is_contiguous",
             "_assert_tensor_metadata", "size", "stride", "numel", "dim")  # fmt: skip


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Tracks the position of the batch in every tensor."""

    def __init__(self, batch: sympy.Symbol) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch = batch
        self._places: dict[int, tuple[torch.Tensor, Place]] = {}  # keeps the tensors alive, so that no id is used twice
        self._inputs: dict[Any, str] = {}
        self.written: set[str] = set()
        self.operator = ""
        self._follows = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Run operators without tracking them."""
        self._follows = False
        try:
            yield
        finally:
            self._follows = True

    def take(self, tensor: torch.Tensor, place: Place, name: str) -> None:
        """Record the position of the batch in an input or a weight, and in the inner tensors of a subclass."""
        for part in (tensor, *plain_tensors(tensor)):
            self._places[id(part)] = (part, place)
            if not is_subclass(part):
                self._inputs[storage_number(part)] = name

    def place(self, tensor: torch.Tensor) -> Place:
        """Return the position of the batch in a tensor; None for a shared one, such as a number in the code."""
        if id(tensor) in self._places:
            return self._places[id(tensor)][1]
        if tensor.dim() and isinstance(tensor, FakeTensor):
            raise NotSeparable("uses a tensor that no operator made")
        return None

    def input_of(self, tensor: torch.Tensor) -> str | None:
        """Return the input or weight whose memory a tensor views."""
        return self._inputs.get(storage_number(plain_tensors(tensor)[0]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._follows:
            return func(*args, **(kwargs or {}))
        if any_subclass(types):
            return NotImplemented  # it is called again for the inner tensors
        self.operator = str(func)
        if func is torch.ops.aten.as_strided_.default and _restrides_ones(*args):
            return func(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self._follow(RowCall(func, args, kwargs or {}, out, 0, self._batch, self.place))
        return out

    def _follow(self, call: RowCall) -> None:
        results = [leaf for leaf in pytree.tree_leaves([call.out]) if isinstance(leaf, torch.Tensor)]
        name = _base_name(call.func)
        leaves = pytree.tree_leaves((call.args, call.kwargs))
        if not results and not schema_of(call.func).is_mutable and name in _METADATA:
            return
        mixed = any(self.place(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
        if not mixed and not any(has(leaf, self._batch) for leaf in leaves):
            if torch.Tag.nondeterministic_seeded in call.func.tags and call["dropout_p"] != 0.0:
                raise NotSeparable("draws random numbers, and microbatches would draw others")
            if call["running_mean"] is not None and (call["training"] or call["train"]):
                raise NotSeparable("writes running statistics, which all rows share")
            places: list[Place] = [None] * len(results)
        else:
            places = self._by_rule(call, name, results)
        self._check_writes(call, results, places)
        for result, place in zip(results, places, strict=True):
            if not fits(result.shape, place, self._batch):
                raise NotSeparable(f"makes the shape {list(result.shape)}, with the rows of the batch not separate")
            self._places[id(result)] = (result, place)

    def _by_rule(self, call: RowCall, name: str, results: list[torch.Tensor]) -> list[Place]:
        if torch.Tag.nondeterministic_seeded in call.func.tags and call["dropout_p"] is None:
            raise NotSeparable("draws random numbers, and microbatches would draw others")
        if not results:
            raise NotSeparable("reads values of the batch into Python")
        rule = RULES.get(name) or (pointwise if torch.Tag.pointwise in call.func.tags else None)
        if rule is None:
            raise NotSeparable("is not known to keep the rows of the batch separate")
        for argument in schema_of(call.func).arguments:
            value = call[argument.name]
            counts = any(has(leaf, self._batch) for leaf in pytree.tree_leaves([value]))
            if counts and argument.name not in SIZES.get(name, ()):
                raise NotSeparable(f"computes with the size of the batch (its {argument.name!r})")
            places = [self.place(leaf) for leaf in pytree.tree_leaves([value]) if isinstance(leaf, torch.Tensor)]
            if any(place is not None and place.numbered for place in places) and NUMBERED.get(name) != argument.name:
                raise NotSeparable("computes with the numbers of the rows")
        found = rule(call)
        return [found] * len(results) if found is None or isinstance(found, Batched) else list(found)

    def _check_writes(self, call: RowCall, results: list[torch.Tensor], places: list[Place]) -> None:
        """Refuse a write that moves the batch in a tensor, or that mixes rows in what the caller holds."""
        if not schema_of(call.func).is_mutable:
            return
        for argument in schema_of(call.func).arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = call[argument.name]
            for tensor in [value] if isinstance(value, torch.Tensor) else value or []:
                before = self.place(tensor)
                after = [place for result, place in zip(results, places, strict=True) if result is tensor]
                owner = self.input_of(tensor)
                if owner is not None and before is None:
                    raise NotSeparable(f"writes {owner}, which all rows share")
                if before is not None and to_expr(tensor.stride(before.dim)) == 0:
                    raise NotSeparable("writes the same elements for all rows of the batch")
                if after != [before] or (before is not None and before.numbered):
                    raise NotSeparable("writes rows of the batch into a tensor that they share")
                if owner is not None:
                    self.written.add(owner)


def _restrides_ones(tensor: torch.Tensor, sizes: Any, strides: Any, offset: Any = None) -> bool:
    """Return whether new strides view the same elements: those of dimensions of size 1 do not matter."""
    before = [(to_expr(size), to_expr(stride)) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    after = [(to_expr(size), to_expr(stride)) for size, stride in zip(sizes, strides, strict=True)]
    if offset is not None or len(before) != len(after):
        return False
    return all(a == b or a[0] == b[0] == 1 for a, b in zip(before, after, strict=True))


def _base_name(func: Any) -> str:
    """Return the name of an operator without its suffixes: ``add`` for ``aten.add_.Tensor``."""
    name = str(func.overloadpacket.__name__)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
