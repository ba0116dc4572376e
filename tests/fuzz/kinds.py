"""The kinds of statements by name, and how often each is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .draft import Draft

Writer: TypeAlias = Callable[[Draft], None]

#: Kinds by name: what writes one, and its weight among all.
KINDS: dict[str, tuple[Writer, float]] = {}

#: Kinds that are left out for now, each with its reason. Empty unless a fault is known and not yet mended.
DISABLED: dict[str, str] = {}


def kind(weight: float = 1.0) -> Callable[[Writer], Writer]:
    """Register what writes a kind of statements, under its name."""

    def register(write: Writer) -> Writer:
        KINDS[write.__name__] = (write, weight)
        return write

    return register


def write(d: Draft, name: str) -> None:
    """Write statements of a kind.

    Raises:
        NotApplicable: there is nothing to write it with.
    """
    with d.writing(name):
        KINDS[name][0](d)


# ---- what a variable may have to be


def real(t: Tensor) -> bool:
    """Floating point."""
    return t.dtype.is_floating_point


def single(t: Tensor) -> bool:
    return t.dtype == torch.float32


def whole(t: Tensor) -> bool:
    """Integers."""
    return t.dtype == torch.int64


def truth(t: Tensor) -> bool:
    return t.dtype == torch.bool


def filled(t: Tensor) -> bool:
    """Not empty."""
    return t.numel() > 0


def dims(*counts: int) -> Callable[[Tensor], bool]:
    return lambda t: t.dim() in counts


def at_least(count: int) -> Callable[[Tensor], bool]:
    return lambda t: t.dim() >= count


def apart(t: Tensor) -> bool:
    """Each element has memory for itself, so that it can be written."""
    return not torch._debug_has_internal_overlap(t)


def small(t: Tensor) -> bool:
    return t.numel() <= 2000
