"""Find the memory behind a tensor, even one that is not a plain strided tensor.

- A tensor of `torch.func` (under vmap, grad or jvp) shows a part of another tensor, and uses its memory.
- A sparse tensor has the memory of its indices and values; an opaque one (of oneDNN) counts by its size.
- A tensor subclass has the memory of its inner tensors (see `tensor_subclasses`).

Example: under ``vmap`` over four rows of eight floats, a tensor of shape ``[8]`` has the 128 bytes of all rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

from fx_partition.common.errors import UnreadableError

from .fake_tensors import has_expression, leaves_of, unwrapped
from .operators import storage_number
from .symbolic_sizes import Size, add_up, to_expr
from .tensor_subclasses import is_subclass, plain_tensors

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_coo: ("_indices", "_values"),
}


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor has strides and one storage: it is neither sparse, nor opaque, nor nested, nor a subclass."""
    return tensor.layout == torch.strided and not tensor.is_nested and not is_subclass(tensor)


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors of which a tensor consists; for most that is the tensor itself."""
    found: list[torch.Tensor] = []
    for plain in plain_tensors(unwrapped(tensor)):
        found += [getattr(plain, name)() for name in _COMPRESSED.get(plain.layout, ())] or [plain]
    return found


def storage_key(tensor: torch.Tensor) -> Hashable:
    """Return a key that is equal for tensors that share memory, as long as these live."""
    if is_subclass(tensor):
        return tuple(map(storage_key, plain_tensors(tensor)))
    part = parts(tensor)[-1]
    return storage_number(part) if is_strided(part) else id(part)


def bytes_of(tensor: torch.Tensor) -> Size:
    """Return the bytes of a tensor's elements."""
    return add_up(to_expr(part.numel() * part.element_size()) for part in parts(tensor))


def check_readable(values: Mapping[torch.fx.Node, Any], weights: Mapping[torch.fx.Node, torch.Tensor]) -> None:
    """Raise an error if the bytes of a value cannot be counted; those of weights, which are real, always can.

    Raises:
        UnreadableError: a value is a nested, sparse or opaque tensor; the message names its node and operator.
    """
    for node, value in values.items():
        for leaf in leaves_of(value):
            if isinstance(leaf, torch.SymInt) and not has_expression(leaf):
                raise UnreadableError(f"{named(node)} is a ragged size of a nested tensor, which has no expression")
            if node in weights or not isinstance(leaf, torch.Tensor):
                continue
            tensor = unwrapped(leaf)
            if all(map(is_strided, plain_tensors(tensor))):
                continue
            kind = "nested" if tensor.is_nested else "sparse or opaque"
            raise UnreadableError(
                f"{named(node)} is a {kind} tensor ({tensor.layout}), whose bytes are known only when it runs"
            )


def named(node: torch.fx.Node) -> str:
    """Return a node's name for an error message, with its operator if it has one."""
    operator = getattr(node.target, "__name__", str(node.target))
    return f"{node.name} ({operator})" if node.op.startswith("call_") else node.name


def span(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements of memory a strided tensor spans, from its first to its last; 0 where it is empty.

    Example: the second column of a matrix of three rows and four columns::

        >>> span((3,), (4,))
        9
    """
    if 0 in sizes:
        return 0
    return 1 + sum((int(size) - 1) * int(stride) for size, stride in zip(sizes, strides, strict=True))
