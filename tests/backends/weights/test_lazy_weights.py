"""The fingerprint of a weight tells apart what its bytes alone do not: subclasses that hold them differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fx_partition.backends.weights.lazy_weights import equal_samples, fingerprint


class Held(torch.Tensor):
    """Looks like float32 of the given sizes, and holds another tensor."""

    def __new__(cls, held: Tensor, shape: tuple[int, ...]) -> Held:
        made: Any = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)  # type: ignore[attr-defined]
        made.held = held
        return made  # type: ignore[no-any-return]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: Any, shape: Any, stride: Any) -> Held:
        return cls(inner["held"], tuple(shape))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.detach.default
        return cls(args[0].held, tuple(args[0].shape))


class HeldOtherwise(Held):
    pass


def test_subclasses_with_equal_bytes_are_told_apart() -> None:
    codes = torch.arange(64, dtype=torch.uint8)
    kinds = [
        Held(codes, (8, 8)),
        HeldOtherwise(codes, (8, 8)),  # another class may mean other numbers by the same codes
        Held(codes.view(torch.int8), (8, 8)),
        Held(codes.view(8, 8), (8, 8)),  # a scale a row, say, and not one in all
        Held(codes, (4, 16)),
        Held(codes + 1, (8, 8)),
    ]
    assert len({fingerprint({"weight": kind})["weight"] for kind in kinds}) == len(kinds)
    assert not any(equal_samples(kinds[0], other) for other in kinds[1:])


def test_subclasses_that_hold_the_same_are_equal() -> None:
    codes = torch.arange(64, dtype=torch.uint8)
    assert equal_samples(Held(codes, (8, 8)), Held(codes.clone(), (8, 8)))
