"""Workspace rules of sorting, searching, indexing and scattering."""

from __future__ import annotations

import torch

from ..capture.op_call import Bytes, LeafCall, largest, likely, nbytes, product
from ..capture.operators import overload_of, schema_of
from .layout_copies import densified, dim_of
from .workspace_rule import WorkspaceRule

_INDEX = 8


def _sort(call: LeafCall) -> Bytes:
    x = call.first
    return x.size(dim_of(call)) * _INDEX if x.dim() else _INDEX


def _kthvalue(call: LeafCall) -> Bytes:
    x = call.first
    return x.numel() * (x.element_size() + _INDEX)


def _median_dim(call: LeafCall) -> Bytes:
    x = call.first
    if x.dim() and likely(x.stride(dim_of(call)) == 1):
        return 0
    return nbytes(x) + (3600 * x.element_size() if x.dim() == 2 else 0)


def _multinomial(call: LeafCall) -> Bytes:
    x = call.first
    if call["replacement"]:
        return x.size(-1) * max(x.element_size(), 4) + 64
    return nbytes(x) + call.out.numel() * x.element_size() + 1024


def _roll(call: LeafCall) -> Bytes:
    x, dims = call.first, call["dims"]
    return nbytes(x) * max(len(dims) - 1, 0) if dims else densified(x)


def _masks(call: LeafCall) -> list[tuple[int, torch.Tensor]]:
    return [
        (position, index)
        for position, index in enumerate(call["indices"])
        if index is not None and index.dtype in (torch.bool, torch.uint8)
    ]


def _copied_numbers(call: LeafCall) -> Bytes:
    """Return the bytes of int64 copies of indices of int32, each as large as all indices broadcast."""
    given = {position: index for position, index in enumerate(call["indices"]) if index is not None}
    copied = sum(index.dtype == torch.int32 for index in given.values())
    if not copied:
        return 0
    first, last = min(given), max(given)
    begin = first if last - first + 1 == len(given) else 0  # where the dimensions of the indices are in the result
    dims = max(index.dim() for index in given.values())
    return product(call.result.shape[begin : begin + dims]) * copied * _INDEX


def _index(call: LeafCall) -> Bytes:
    masks = _masks(call)
    if not masks:
        return _copied_numbers(call)
    position, mask = masks[0]
    return call.result.size(position) * mask.dim() * _INDEX + 64


def _masked_select(call: LeafCall) -> Bytes:
    x, mask = call["self"], call["mask"]
    numel = largest(x.numel(), mask.numel())
    if call.threads == 1 or likely(numel < 32768):
        return largest(0, numel * _INDEX + 64 - nbytes(call.result))  # freed before the result is allocated
    return numel * 2 * _INDEX


def _unique(call: LeafCall) -> Bytes:
    x = call.first
    size = x.numel() * (x.element_size() + 2 * _INDEX)
    return size if call["return_inverse"] else largest(0, size - nbytes(call.result))


def _reduced_scatter(call: LeafCall) -> Bytes:
    """Return the bytes of the float32 copy of the result, in which bfloat16 and float16 are accumulated."""
    y = call.first if schema_of(call.func).name != "aten::gather" else call.result
    return y.numel() * 4 if y.element_size() == 2 and y.dtype.is_floating_point else 0


def _index_add(call: LeafCall) -> Bytes:
    x, dim = call.first, dim_of(call)
    if dim == x.dim() - 1:
        return _reduced_scatter(call)
    return x.numel() // x.size(0) * 8 if dim == 0 else 0


def _searchsorted(call: LeafCall) -> Bytes:
    boundaries, values = call["sorted_sequence"], call["self"]
    values = values if isinstance(values, torch.Tensor) else None
    return densified(boundaries) + densified(values)


_SCATTER = "ATen/native/cpu/ScatterGatherKernel.cpp: a float32 buffer for bfloat16 and float16"

ORDER_RULES: dict[str, WorkspaceRule] = {
    "aten::sort": WorkspaceRule(_sort, "ATen/native/cpu/SortingKernel.cpp, sort_stable_kernel: an arange"),
    "aten::kthvalue": WorkspaceRule(_kthvalue, "ATen/native/Sorting.cpp, kthvalue_out_impl_cpu: values and indices"),
    "aten::median": WorkspaceRule(
        lambda call: nbytes(call.first) if overload_of(call.func) == "default" else _median_dim(call),
        "ATen/native/Sorting.cpp, median_impl: a clone; median_with_indices_impl: a copy with the dimension dense",
    ),
    "aten::nanmedian": WorkspaceRule(
        lambda call: nbytes(call.first) if overload_of(call.func) == "default" else _median_dim(call),
        "ATen/native/Sorting.cpp, median_impl: a clone; median_with_indices_impl: a copy with the dimension dense",
    ),
    "aten::multinomial": WorkspaceRule(
        _multinomial, "ATen/native/Distributions.cpp, multinomial: the exponential draws and topk's values"
    ),
    "aten::roll": WorkspaceRule(
        _roll, "ATen/native/TensorTransformations.cpp, roll_common: a result for each dimension but the last"
    ),
    "aten::index": WorkspaceRule(
        _index,
        "ATen/native/IndexingUtils.h, expandTensors: nonzero() of a mask; "
        "TensorAdvancedIndexingUtils.h, make_info: int64 copies of int32",
    ),
    "aten::masked_select": WorkspaceRule(
        _masked_select, "ATen/native/TensorAdvancedIndexing.cpp, masked_select: the mask as int64, its sums"
    ),
    "aten::_unique2": WorkspaceRule(
        _unique, "ATen/native/Unique.cpp, unique_cpu_sorted_template: the sorted values, their indices, an arange"
    ),
    "aten::gather": WorkspaceRule(_reduced_scatter, _SCATTER),
    "aten::scatter": WorkspaceRule(_reduced_scatter, _SCATTER),
    "aten::scatter_": WorkspaceRule(_reduced_scatter, _SCATTER),
    "aten::scatter_add": WorkspaceRule(_reduced_scatter, _SCATTER),
    "aten::scatter_add_": WorkspaceRule(_reduced_scatter, _SCATTER),
    "aten::scatter_reduce": WorkspaceRule(_reduced_scatter, _SCATTER),
    "aten::index_add": WorkspaceRule(_index_add, _SCATTER),
    "aten::index_add_": WorkspaceRule(_index_add, _SCATTER),
    "aten::_embedding_bag_forward_only": WorkspaceRule(
        lambda call: call["offsets"].numel() * 64 + 512,
        "ATen/native/EmbeddingBag.cpp, make_bag_size and offset2bag: a few numbers for each bag",
    ),
    "aten::searchsorted": WorkspaceRule(_searchsorted, "ATen/native/Bucketization.cpp: dense copies of both operands"),
}
