"""Recognise calls that do the same to memory, so that only the first of them runs on dummy inputs.

Before (all tensors have four floats, each in memory of its own)::

    a = x * 2;  b = y * 2;  c = a + b;  d = b + a;  e = a + a

After::

    b is alike a, and d alike c: what the first does to its operands, the second does to its own.
    e is alike none of them, as its operands are one tensor.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.fake_tensors import is_learned, is_wrapped
from ..capture.symbolic_sizes import Size
from ..capture.tensor_storage import is_strided
from ..capture.tensor_subclasses import plain_tensors
from ..footprint.op_effects import Effect
from ..workspace.measured_scratch import Scratch
from .runs import Held, is_held, tensors_in


@dataclass(frozen=True)
class Call:
    """A call on tensors of which no two share memory.

    Attributes:
        key: equal for calls that are alike.
        operands: the tensors that it takes, each once, in the order of its arguments.
    """

    key: Hashable
    operands: tuple[Held, ...]


@dataclass(frozen=True)
class PlainCall:
    """What is known of calls that are alike: they write nothing, and each result is in memory of its own.

    Attributes:
        results: bytes of the memory of each result.
        draws, workspace, scratch: as of the call that has run.
        effect: what it reads.
    """

    draws: bool
    results: tuple[Size, ...]
    workspace: tuple[Size, ...]
    scratch: Scratch | None
    effect: Effect


class Calls:
    """A maker of `Call` for the nodes of one graph.

    Args:
        env: what each node that has been read is, with `Held` in place of tensors.
        values: the fake value of each node.

    Values, weights and dummy inputs must live as long as this object; values and weights must stay as they are.
    """

    def __init__(self, env: Mapping[torch.fx.Node, Any], values: Mapping[torch.fx.Node, Any]) -> None:
        self._env, self._values = env, values
        self._numbers: dict[Hashable, int] = {}  # of layouts: a number is quicker to compare
        self._number_of: dict[int, int | None] = {}  # by the id of a value, of a weight or of a dummy input

    def of(self, node: torch.fx.Node, modes: Hashable) -> Call | None:
        """Return the call of a node; None where what it does may depend on more than a key has.

        Args:
            modes: what is in force at the node, such as autocast.
        """
        if node.op == "call_module":
            return None
        call = _Draft([node.op, node.target, modes], {})
        if not (self._add(node.args, call) and self._add(node.kwargs, call)):
            return None
        key = tuple(call.parts)
        try:
            hash(key)
        except TypeError:  # slices do not hash
            return None
        return Call(key, tuple(operand.held for operand in call.operands.values()))

    def _add(self, argument: Any, call: _Draft) -> bool:
        """Add an argument; False where it makes the call one that is alike no other."""
        if isinstance(argument, torch.fx.Node):
            held, value = self._env.get(argument), self._values.get(argument)
            if isinstance(held, Held):  # nearly always, and a walk through a tree takes long
                return self._add_tensor(held, value, call)
            leaves, structure = pytree.tree_flatten(held, is_leaf=is_held)
            call.parts.append(structure)
            tensors = iter(tensors_in(value))
            return all(
                self._add_tensor(leaf, next(tensors), call) if isinstance(leaf, Held) else _add_constant(leaf, call)
                for leaf in leaves
            )
        if isinstance(argument, (tuple, list)):
            call.parts.append((type(argument), len(argument)))
            return all(self._add(entry, call) for entry in argument)
        if isinstance(argument, dict):
            call.parts.append((type(argument), tuple(argument)))
            return all(self._add(entry, call) for entry in argument.values())
        return _add_constant(argument, call)

    def _add_tensor(self, held: Held, value: Any, call: _Draft) -> bool:
        known = call.operands.get(held.memory)
        if known is None:
            layout = self._layout_number(held)
            if layout is None:
                return False
            known = call.operands[held.memory] = _Operand(len(call.operands), held, layout, id(value))
        elif known.held is not held or known.value != id(value):
            return False
        call.parts += (known.place, known.layout)
        return True

    def _layout_number(self, held: Held) -> int | None:
        """Return a number that is equal for tensors of one layout; None where a call's effect may depend on more."""
        tensor = held.like if held.tensor is None else held.tensor
        known = id(tensor)
        if known not in self._number_of:
            # A dummy input that is yet to be made begins where its memory does.
            layout = _layout(tensor, 0 if held.tensor is None else held.tensor.storage_offset())
            self._number_of[known] = None if layout is None else self._numbers.setdefault(layout, len(self._numbers))
        return self._number_of[known]

    def forget(self, tensors: Iterable[torch.Tensor]) -> None:
        """Look at the layout of dummy inputs again, as a call may have changed it."""
        for tensor in tensors:
            self._number_of.pop(id(tensor), None)


@dataclass
class _Draft:
    """The parts of a key, and the operands by their memory."""

    parts: list[Any]
    operands: dict[int, _Operand]


class _Operand(NamedTuple):
    place: int
    held: Held
    layout: int
    value: int  # its id


def _add_constant(leaf: Any, call: _Draft) -> bool:
    if isinstance(leaf, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return False
    call.parts.append((type(leaf), leaf))
    return True


def has_dummy_input(tensor: torch.Tensor) -> bool:
    """Whether a plain tensor can stand for another when a call runs."""
    return not is_wrapped(tensor) and all(map(is_strided, plain_tensors(tensor)))


def _layout(tensor: torch.Tensor | None, offset: int | torch.SymInt) -> Hashable:
    """Return sizes, strides and kind of a tensor; None where a size is symbolic or there is no dummy input."""
    if tensor is None or is_wrapped(tensor) or not is_strided(tensor):
        return None
    numbers = (*tensor.shape, None, *tensor.stride(), None, offset)
    if torch.SymInt in map(type, numbers):
        return None
    return numbers, tensor.dtype, tensor.device, is_learned(tensor), tensor.is_conj(), tensor.is_neg()
