"""Find the tensor arguments of ATen operators that are never read, by running them on memory that cannot be read.

Run as a script: a child process for every argument, which the system ends if the operator touches the elements.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from typing import Any

import torch
from torch.utils import _pytree as pytree

aten = torch.ops.aten
x = torch.ones(8, 8)
number = torch.ones(())

# Calls whose tensor arguments are read, and calls of operators of `shape_reads.SHAPE_ONLY`.
READING: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (x, x.clone())),
    (aten.bernoulli.default, (x,)),
    (aten.clone.default, (x,)),
    (aten.copy.default, (x, x.clone())),
    (aten.select_scatter.default, (x, x[0].clone(), 0, 0)),
    (aten.zero.default, (x,)),
]
SHAPE_ONLY: list[tuple[Any, tuple[Any, ...]]] = [
    (aten._assert_tensor_metadata.default, (x, [8, 8])),
    (aten._shape_as_tensor.default, (x,)),
    (aten.dim.default, (x,)),
    (aten.is_contiguous.default, (x,)),
    (aten.numel.default, (x,)),
    (aten.size.int, (x, 0)),
    (aten.stride.int, (x, 0)),
    (aten.storage_offset.default, (x,)),
    (aten.sym_is_contiguous.default, (x,)),
    (aten.sym_numel.default, (x,)),
    (aten.sym_size.int, (x, 0)),
    (aten.sym_storage_offset.default, (x,)),
    (aten.sym_stride.int, (x, 0)),
    (aten.is_same_size.default, (x, x.clone())),
    (aten.is_set_to.default, (x, x.clone())),
    (aten.result_type.Tensor, (x, x.clone())),
    (aten.bernoulli.p, (x, 0.5)),
    (aten.empty_like.default, (x,)),
    (aten.fill.Scalar, (x, 1.0)),
    (aten.full_like.default, (x, 1.0)),
    (aten.new_empty.default, (x, [3])),
    (aten.new_empty_strided.default, (x, [3], [1])),
    (aten.new_full.default, (x, [3], 1.0)),
    (aten.new_ones.default, (x, [3])),
    (aten.new_zeros.default, (x, [3])),
    (aten.ones_like.default, (x,)),
    (aten.rand_like.default, (x,)),
    (aten.randint_like.default, (x, 3)),
    (aten.randn_like.default, (x,)),
    (aten.zeros_like.default, (x,)),
    (aten._unsafe_view.default, (x, [64])),
    (aten.lift.default, (x,)),
    (aten.unsafe_chunk.default, (x, 2)),
    (aten.unsafe_split.Tensor, (x, 2)),
    (aten.unsafe_split_with_sizes.default, (x, [4, 4])),
    (aten.resize_as_.default, (x, x.clone())),
    (aten.fill.Tensor, (x, number)),
]


def protected(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like this one that ends the process which reads or writes it."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mprotect(ctypes.c_void_p(flat.data_ptr()), ctypes.c_size_t(mmap.PAGESIZE), 0)
    assert not failed, os.strerror(ctypes.get_errno())
    return flat.as_strided(tensor.shape, tensor.stride())


def touches(func: Any, args: tuple[Any, ...], position: int) -> bool:
    """Whether a call touches the elements of its tensor argument at ``position``."""
    child = os.fork()
    if not child:
        leaves, structure = pytree.tree_flatten(args)
        leaves[position] = protected(leaves[position])
        try:
            with torch.no_grad():
                func(*pytree.tree_unflatten(leaves, structure))
        except BaseException as error:
            print(f"{func.name()}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGSEGV, signal.SIGBUS), status
        return True
    assert os.WEXITSTATUS(status) == 0, func.name()
    return False


def main() -> None:
    """Print the name of each operator of both lists, its argument, and whether it touches it."""
    torch.set_num_threads(1)
    for func, args in (*READING, *SHAPE_ONLY):
        for position, (argument, value) in enumerate(zip(func._schema.arguments, args, strict=False)):
            if isinstance(value, torch.Tensor):
                print(func._schema.name, func._overloadname, argument.name, touches(func, args, position), flush=True)


if __name__ == "__main__":
    main()
