"""The form of a workspace rule; `rules` has the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..capture.op_call import Bytes, LeafCall


def never(call: LeafCall) -> bool:
    """Return False: the rule holds on every processor."""
    return False


def always(call: LeafCall) -> bool:
    """Return True: every call depends on the processor."""
    return True


def of_elements(call: LeafCall) -> Bytes:
    """Return the number of elements of the first operand, as one operation each."""
    return call.first.numel()


@dataclass(frozen=True)
class WorkspaceRule:
    """The memory that the CPU kernel of one operator allocates beyond its outputs.

    Attributes:
        bytes: from a call, the bytes at the kernel's peak beyond its outputs; never negative.
        source: the file of PyTorch or oneDNN that allocates, and what.
        varies: whether the bytes of a call depend on the processor, or on the libraries that torch was built with. Then
            ``bytes`` is an estimate, and `kernel_memory` measures this machine. It must not compare sizes.
        flops: about how many floating-point operations a call takes; a call of too many is not measured.
        contents: for each argument whose numbers decide what is allocated, the number that allocates the most.
    """

    bytes: Callable[[LeafCall], Bytes]
    source: str
    varies: Callable[[LeafCall], bool] = never
    flops: Callable[[LeafCall], Bytes] = of_elements
    contents: Mapping[str, Callable[[LeafCall], Bytes]] = field(default_factory=dict)
