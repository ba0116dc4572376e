"""Which memory the operators inside a node write, and where its results are, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture.fake_tensors import FakeTensorMode, is_learned
from ..capture.operators import schema_of
from ..capture.symbolic_sizes import Size, to_expr
from ..capture.tensor_storage import storage_key
from ..capture.tensor_subclasses import any_subclass, is_subclass, plain_tensors
from ..footprint.op_effects import Effect, distinct_tensors, observe
from .runs import tensors_in

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
        if any_subclass(types):
            return NotImplemented  # it is called again for the inner tensors
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
    tensors = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return [storage_key(plain) for leaf in tensors for plain in plain_tensors(leaf)]


@dataclass(frozen=True)
class Seen:
    """One call on tensors of which no two share memory, as `observe` and as a `Recorder` see it.

    Attributes:
        effect: what `observe` says.
        draws: whether random numbers were taken.
        results: bytes of the memory of each tensor of the result; None where the call writes what it is given, or where
            a result shares memory with another or with what is given.
    """

    effect: Effect
    draws: bool
    results: tuple[Size, ...] | None

    @property
    def sizes(self) -> list[Size]:
        return self.effect.sizes


def see(function: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode) -> Seen:
    """Run a function once on new fakes in place of its arguments, each in memory of its own; arguments as `observe`."""
    recorder = Recorder()
    kept: list[Any] = []  # what is asked of a tensor within `observe` passes through its modes, which takes long

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with recorder:
            result = function(*args, **kwargs)
        kept.extend([(args, kwargs), result])
        return result

    effect = observe(recorded, args, kwargs, mode)
    given, made = distinct_tensors(kept[0]), tensors_in(kept[1])
    taken, places = set(map(storage_key, given)), [storage_key(tensor) for tensor in made]
    results: tuple[Size, ...] | None = None
    is_apart = len({*taken, *places}) == len(taken) + len(places) and not any(map(is_subclass, (*given, *made)))
    if is_apart and not taken & (recorder.written | recorder.reshaped):
        before = map(metadata_of, distinct_tensors((args, kwargs)))
        if list(before) == list(map(metadata_of, given)):
            results = tuple(to_expr(tensor.untyped_storage().nbytes()) for tensor in made)
    return Seen(effect, recorder.draws, results)


def metadata_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return the sizes, the strides, and whether a gradient is asked for."""
    return tuple(map(to_expr, tensor.shape)), tuple(map(to_expr, tensor.stride())), is_learned(tensor)
