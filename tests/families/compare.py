"""Compare the results of calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .family import Call, Family, tensors

#: The two calls of every check: the second one finds what the first one left behind.
SEEDS = (0, 1)


def call(function: Callable[..., Any], arguments: Call) -> list[Tensor]:
    """What a call returns, and what it left in its arguments."""
    args, kwargs = arguments
    results = tensors(function(*args, **kwargs))
    left = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return [tensor.detach() for tensor in (*results, *left)]


def calls(function: Callable[..., Any], family: Family, state: nn.Module) -> list[list[Tensor]]:
    """The results of calls with several inputs, and the buffers of ``state`` after them."""
    results = [call(function, family.inputs(seed)) for seed in SEEDS]
    return [*copy.deepcopy(results), [buffer.clone() for buffer in state.buffers()]]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor; whole numbers must be equal."""
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not (b.is_floating_point() or b.is_complex()):
            assert torch.equal(a, b), f"whole numbers differ: {a.flatten()[:8]} for {b.flatten()[:8]}"
        elif b.numel():
            assert torch.equal(a.isfinite(), b.isfinite()), "infinities differ"
            a, b = (x.nan_to_num(0.0, 0.0, 0.0).to(torch.promote_types(x.dtype, torch.float64)) for x in (a, b))
            worst = max(worst, ((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item())
    return worst


def worst(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    return max(error(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def assert_same_strides(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for which, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert a.stride() == b.stride(), f"call {which}: tensor {i} has strides {a.stride()}, and not {b.stride()}"


def assert_same_aliases(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    """The same tensors of each call share memory: its results with each other, and with its inputs."""
    for which, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        ours, wanted = sharing(mine), sharing(theirs)
        assert ours == wanted, f"call {which}: {ours} share memory, and not {wanted}"


def sharing(tensors: list[Tensor]) -> list[list[int]]:
    """The numbers of tensors that share their memory with another one."""
    groups: dict[int, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.numel():
            groups.setdefault(tensor.untyped_storage().data_ptr(), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """As `error`, where whole numbers and shapes may differ: then it is 1."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return 1.0
    exact = [torch.equal(a, b) for a, b in zip(found, expected, strict=True) if not a.is_floating_point()]
    floats = [(a, b) for a, b in zip(found, expected, strict=True) if a.is_floating_point()]
    if not all(exact) or not all(a.isfinite().all() for a, _ in floats):
        return 1.0
    return error([a for a, _ in floats], [b for _, b in floats])


def assert_same(found: list[Tensor], expected: list[Tensor], where: str) -> None:
    """Equal bits, types and strides."""
    assert len(found) == len(expected), where
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        ours, theirs = ((t.dtype, tuple(t.shape), t.stride()) for t in (a, b))
        assert ours == theirs, f"{where}: tensor {i} is {ours}, and not {theirs}"
        bits = torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
        assert bits, f"{where}: tensor {i} differs by {difference([a], [b]):g}"
