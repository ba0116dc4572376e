"""Workspace rules of pointwise operators and reductions: operands that TensorIterator casts, and accumulators."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..capture.op_call import Bytes, LeafCall, likely, nbytes
from ..capture.operators import overload_of, schema_of
from .layout_copies import densified, merges
from .workspace_rule import WorkspaceRule

_SCALARS = 32  # Python numbers become tensors, once as they are and once in the common dtype
_MASKS = frozenset({"condition", "mask"})


def pointwise(call: LeafCall) -> Bytes:
    """Return the bytes of operands that are cast to the common dtype, the target of a write in place among them."""
    operands: list[torch.Tensor] = []
    promoted: list[Any] = []
    for argument, value in zip(schema_of(call.func).arguments, call.args, strict=False):
        if argument.name in _MASKS:
            continue
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                operands.append(leaf)
                promoted.append(leaf)
            elif isinstance(leaf, (bool, int, float)):
                promoted.append(leaf)
    if not operands:
        return 0
    result = next((leaf for leaf in pytree.tree_leaves(call.out) if isinstance(leaf, torch.Tensor)), None)
    common = _common_dtype(promoted)
    if result is not None and result.dtype != torch.bool and not schema_of(call.func).is_mutable:
        common = result.dtype
    size: Bytes = _SCALARS
    for operand in operands:
        if operand.dtype != common:
            size = size + operand.numel() * common.itemsize
    return size


def _common_dtype(values: list[Any]) -> torch.dtype:
    common: torch.dtype = torch.result_type(values[0], values[min(1, len(values) - 1)])
    for one, other in itertools.pairwise(values[1:]):
        common = torch.promote_types(common, torch.result_type(one, other))
    return common


def _half(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _cast(call: LeafCall) -> Bytes:
    """Return the bytes of the input in the dtype of the result; 0 if it has that dtype."""
    x, dtype = call.first, call.result.dtype
    return 0 if x.dtype == dtype else x.numel() * dtype.itemsize


def _separate_runs(x: torch.Tensor, dims: set[int]) -> bool:
    """Whether the reduced dimensions do not merge into one, as TensorIterator merges neighbours in memory."""
    order = sorted((d for d in dims if not likely(x.size(d) == 1)), key=lambda d: _Stride(x.stride()[d]))
    return not merges(x, order[::-1])


class _Stride:
    """A stride that is ordered without guards."""

    def __init__(self, stride: Bytes) -> None:
        self.stride = stride

    def __lt__(self, other: _Stride) -> bool:
        return likely(self.stride < other.stride)


def _dims(call: LeafCall) -> set[int]:
    x, dims = call.first, call["dim"]
    if dims is None or dims == []:
        return set(range(x.dim()))
    return {d % max(x.dim(), 1) for d in (dims if isinstance(dims, (list, tuple)) else [dims])}


def _sum(call: LeafCall) -> Bytes:
    x = call.first
    size = _cast(call) + 128
    if _half(call.result) and _separate_runs(x, _dims(call)):
        size = size + (x.numel() + call.result.numel()) * 4
    return size


def _mean(call: LeafCall) -> Bytes:
    x, y = call.first, call.result
    return (x.numel() + y.numel()) * 4 + 64 if _half(y) else _cast(call) + 64


def _logsumexp(call: LeafCall) -> Bytes:
    x, y = call.first, call.result
    exponentials = x.numel() * y.element_size() + nbytes(y)
    if _half(y) and _separate_runs(x, _dims(call)):
        exponentials = exponentials + (x.numel() + y.numel()) * 4
    return exponentials


def _any(call: LeafCall) -> Bytes:
    x = call.first
    return 64 if x.dtype == torch.bool else x.numel() + 64


def _of_everything(call: LeafCall) -> Bytes:
    return densified(call.first) if overload_of(call.func) == "default" and call["dim"] is None else 0


def _flattened(call: LeafCall) -> Bytes:
    x = call.first
    return 0 if call["dim"] is not None or merges(x, range(x.dim())) else nbytes(x)


def _few(call: LeafCall) -> Bytes:
    return 128  # a buffer for each thread's result, or a number as a tensor


def _loss(copies: int) -> Callable[[LeafCall], Bytes]:
    """Return the rule of a loss: ``copies`` of each element's loss before the reduction, if there is one."""

    def rule(call: LeafCall) -> Bytes:
        return copies * call.first.numel() * call.result.element_size() + 64 if call["reduction"] else 0

    return rule


_LOSS = "ATen/native/Loss.cpp: the losses before they are reduced"
_REDUCE = "ATen/native/ReduceOps.cpp: {}"
_DENSE = _REDUCE.format("a reduction of everything copies what is not contiguous")
_SCAN = WorkspaceRule(_cast, _REDUCE.format("self.to(dtype), for integers and for dtype="))

REDUCE_RULES: dict[str, WorkspaceRule] = {
    "aten::cumsum": _SCAN,
    "aten::cumprod": _SCAN,
    "aten::prod": WorkspaceRule(lambda call: _cast(call) + 128, _REDUCE.format("self.to(dtype)")),
    "aten::sum": WorkspaceRule(
        _sum, _REDUCE.format("self.to(dtype); float32 input and result where should_use_acc_buffer(), bfloat16")
    ),
    "aten::mean": WorkspaceRule(_mean, _REDUCE.format("self.to(dtype); float32 input and result for bfloat16")),
    "aten::logsumexp": WorkspaceRule(_logsumexp, _REDUCE.format("(self - maxes).exp_(), maxes")),
    "aten::any": WorkspaceRule(_any, _REDUCE.format("self.to(kBool)")),
    "aten::all": WorkspaceRule(_any, _REDUCE.format("self.to(kBool)")),
    "aten::count_nonzero": WorkspaceRule(
        lambda call: 0 if call["dim"] is None else call.first.numel() * 9,
        "ATen/native/TensorAdvancedIndexing.cpp, count_nonzero: self != 0, and its sum's int64 operand",
    ),
    "aten::max": WorkspaceRule(_of_everything, _DENSE),
    "aten::min": WorkspaceRule(_of_everything, _DENSE),
    "aten::argmax": WorkspaceRule(_flattened, _REDUCE.format("self.reshape({-1})")),
    "aten::argmin": WorkspaceRule(_flattened, _REDUCE.format("self.reshape({-1})")),
    "aten::nansum": WorkspaceRule(lambda call: _cast(call) + 128, _REDUCE.format("self.to(dtype)")),
    "aten::var": WorkspaceRule(_few, _REDUCE.format("a result for each thread")),
    "aten::std": WorkspaceRule(_few, _REDUCE.format("a result for each thread")),
    "aten::repeat": WorkspaceRule(_few, "ATen/native/TensorShape.cpp, repeat: the sizes"),
    "aten::floor_divide": WorkspaceRule(pointwise, "ATen/TensorIterator.cpp, compute_types: as pointwise operators"),
    "aten::aminmax": WorkspaceRule(_of_everything, _DENSE),
    "aten::isinf": WorkspaceRule(
        lambda call: nbytes(call.first) + 64 if call.first.dtype.is_floating_point else 0,
        "ATen/native/TensorCompare.cpp, isinf: self.abs()",
    ),
    "aten::mse_loss": WorkspaceRule(_loss(2), _LOSS),
    "aten::smooth_l1_loss": WorkspaceRule(_loss(2), _LOSS),
    "aten::huber_loss": WorkspaceRule(_loss(1), _LOSS),
}
