"""Keep a call of a kernel as plain data, so that it can run again on zeros of any sizes.

Before (an operator on fake tensors of a symbolic graph)::

    aten.mm(x, w)        x: [s0, 512] bfloat16, w: [512, 512] bfloat16

After (`KernelCall.at`, with the number 4 for s0)::

    aten::mm over the operands [4, 512] and [512, 512], contiguous, bfloat16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree

from ..capture.fake_tensors import FakeTensor
from ..capture.op_call import LeafCall
from ..capture.symbolic_sizes import Evaluator, Size, to_expr
from ..capture.tensor_storage import span
from .workspace_rule import WorkspaceRule

# Types of other arguments whose repr tells equal calls from different ones.
_PLAIN = (bool, float, str, torch.dtype, torch.layout, torch.memory_format, type(None))


@dataclass(frozen=True)
class Operand:
    """A tensor argument all of whose elements are the number ``content``."""

    sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    dtype: torch.dtype
    content: Size

    @property
    def all_sizes(self) -> tuple[Size, ...]:
        return (*self.sizes, *self.strides, self.content)

    def with_sizes(self, numbers: list[int]) -> Operand:
        """Return the same operand with numbers in place of `all_sizes`."""
        dims = len(self.sizes)
        return replace(self, sizes=tuple(numbers[:dims]), strides=tuple(numbers[dims:-1]), content=numbers[-1])

    @property
    def bytes(self) -> int:
        """Return the bytes of memory from its first element to its last; its sizes must be numbers."""
        return span(self._ints(self.sizes), self._ints(self.strides)) * self.dtype.itemsize

    def allocate(self) -> torch.Tensor:
        """Return a real tensor; its sizes must be numbers."""
        sizes, strides = self._ints(self.sizes), self._ints(self.strides)
        memory = torch.zeros(span(sizes, strides), dtype=self.dtype, device="cpu")
        return (memory.fill_(self._ints((self.content,))[0]) if self.content else memory).as_strided(sizes, strides)

    @staticmethod
    def _ints(sizes: tuple[Size, ...]) -> list[int]:
        return [int(size) for size in sizes]


@dataclass(frozen=True)
class BoundCall:
    """A call whose sizes are numbers.

    Attributes:
        func: the ATen operator.
        arguments: its (args, kwargs) as a flat list, with an `Operand` in place of each tensor.
        structure: the pytree structure of the list.
        results: bytes of its results in new memory.
        scratch: bytes that the rule expects it to allocate in addition to these.
        flops: about how many floating-point operations it takes.
    """

    func: Any
    arguments: tuple[Any, ...]
    structure: Any
    results: int
    scratch: int
    flops: int

    @cached_property
    def text(self) -> str:
        """Return a text that is equal for equal calls, in every process."""
        return f"{self.func.name()} {self.structure} {self.arguments!r}"

    @property
    def bytes(self) -> int:
        """Return the bytes that a run is expected to allocate, operands included."""
        operands = sum(argument.bytes for argument in self.arguments if isinstance(argument, Operand))
        return operands + self.results + self.scratch


@dataclass(frozen=True)
class KernelCall:
    """A call whose sizes may be symbolic; for the attributes see `BoundCall`."""

    func: Any
    arguments: tuple[Any, ...]
    structure: Any
    results: Size
    scratch: Size
    flops: Size

    @cached_property
    def text(self) -> str:
        """Return a text that is equal for equal calls over the same symbols."""
        return f"{self.func.name()} {self.structure} {self.arguments!r}"

    @cached_property
    def _evaluator(self) -> Evaluator:
        """Return the evaluator of all sizes; cached, as steps of like blocks share a call."""
        sizes: list[Size] = [self.results, self.scratch, self.flops]
        for argument in self.arguments:
            sizes += argument.all_sizes if isinstance(argument, Operand) else [argument] if _is_size(argument) else []
        return Evaluator(sizes)

    def at(self, numbers: Mapping[sympy.Symbol, int]) -> BoundCall:
        """Return the call with numbers for symbols."""
        found = iter(self._evaluator(numbers))
        results, scratch, flops = (next(found) for _ in range(3))
        bound: list[Any] = []
        for argument in self.arguments:
            if isinstance(argument, Operand):
                bound.append(argument.with_sizes([next(found) for _ in argument.all_sizes]))
            else:
                bound.append(next(found) if _is_size(argument) else argument)
        return BoundCall(self.func, tuple(bound), self.structure, results, scratch, flops)


def _is_size(argument: Any) -> bool:
    return isinstance(argument, sympy.Expr) or (isinstance(argument, int) and not isinstance(argument, bool))


def kernel_call(call: LeafCall, rule: WorkspaceRule, scratch: Size, results: Size) -> KernelCall | None:
    """Return a call as data; None if it cannot run again from data alone, or not on this machine's processor.

    Args:
        call: the call on fake tensors.
        rule: the rule of its operator.
        scratch: the rule's bytes for the call, without its results.
        results: bytes of its results in new memory.
    """
    contents = {id(call[name]): to_expr(content(call)) for name, content in rule.contents.items()}
    leaves, structure = pytree.tree_flatten((call.args, call.kwargs))
    arguments: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            plain = type(leaf) is FakeTensor and leaf.layout is torch.strided
            if not plain or leaf.device.type not in ("cpu", "meta"):
                return None
            sizes, strides = (tuple(map(to_expr, dims)) for dims in (leaf.shape, leaf.stride()))
            arguments.append(Operand(sizes, strides, leaf.dtype, contents.get(id(leaf), 0)))
        elif isinstance(leaf, torch.SymInt):
            arguments.append(to_expr(leaf))
        elif isinstance(leaf, (int, *_PLAIN)):
            arguments.append(leaf)
        else:
            return None
    return KernelCall(call.func, tuple(arguments), structure, results, scratch, to_expr(rule.flops(call)))
