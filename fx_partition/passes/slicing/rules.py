"""A table of the operators that can be computed in slices, and of the dimensions to slice them along.

Terms
-----
slice
    A part of a node's work that reads a part of its weight.
axis
    "outputs": each slice makes a part of the result, and the parts are concatenated. "inputs": each slice makes a
    summand of the whole result from a part of the input features.
units
    Rows or columns of a weight, or groups of a convolution, which slices divide among them. A slice has at least one.
recipe
    How to slice one node along one axis: which operands to narrow, and how to join the slices.

=============================  ==================================  ==========================================
operator                       outputs                             inputs
=============================  ==================================  ==========================================
linear(x, W, b)                W[a:b], b[a:b]; cat on -1           x[..., a:b], W[:, a:b]; b in the first
x @ W (matmul, mm, bmm)        W[..., a:b]; cat on -1              x[..., a:b], W[..., a:b, :]
W @ x                          W[..., a:b, :]; cat on -2           W[..., a:b], x[..., a:b, :]
addmm, baddbmm(c, x, W)        as x @ W, with c[..., a:b]          as x @ W; c is the sum of the slices before
embedding(ids, W)              W[:, a:b]; cat on -1                none: a row belongs to one index
conv1d, 2d, 3d(x, W, b)        W[a:b], b[a:b]; cat on channels     x[:, a:b], W[:, a:b]; b in the first
the same with groups           whole groups of x, W and b          none
=============================  ==================================  ==========================================
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.fx
import torch.nn.functional as F

from fx_partition.common.errors import PartitionError

from ..capture.symbolic_sizes import to_expr

Axis: TypeAlias = Literal["outputs", "inputs"]


class Unsliceable(PartitionError):
    """Raised for a node that cannot be sliced; the message says why."""


@dataclass(frozen=True)
class Narrowed:
    """An operand of which a slice over the units [a, b) reads [a * scale, b * scale) of dimension ``dim``."""

    operand: str
    dim: int
    scale: int = 1


@dataclass(frozen=True)
class Recipe:
    """How to slice a node along one axis.

    Attributes:
        units: the number of units, which is the largest number of slices.
        narrowed: the operands that a slice reads in part.
        cat_dim: the dimension along which slices are concatenated; None where they are added up.
        first_only: an operand of the first slice only (the bias, where slices are added up).
        chained: an operand that, in all but the first slice, is replaced by the sum of the slices before.
        counted: an argument that becomes the number of the slice's units (the groups of a convolution).
    """

    axis: Axis
    units: int
    narrowed: tuple[Narrowed, ...]
    cat_dim: int | None = None
    first_only: str | None = None
    chained: str | None = None
    counted: str | None = None


class Call:
    """The arguments of a call, by the names of its parameters.

    Args:
        node: a ``call_function`` or ``call_method``.
        names: its parameters in order, ``"other|mat2"`` where operators of the family differ.
        values: fake values of the graph's nodes.
        is_weight: returns whether a node is a weight or a view of one.
    """

    def __init__(
        self,
        node: torch.fx.Node,
        names: tuple[str, ...],
        values: Mapping[torch.fx.Node, Any],
        is_weight: Callable[[torch.fx.Node], bool],
    ) -> None:
        self.node, self._values, self._is_weight = node, values, is_weight
        self._slots: dict[str, int | str] = {}
        for position, name in enumerate(names):
            keys = name.split("|")
            passed: list[int | str] = [position] if position < len(node.args) else []
            passed += [key for key in keys if key in node.kwargs]
            if passed:
                self._slots[keys[0]] = passed[0]

    def get(self, name: str) -> Any:
        """Return an argument, None if it was not passed."""
        slot = self._slots.get(name)
        if slot is None:
            return None
        return self.node.args[slot] if isinstance(slot, int) else self.node.kwargs[slot]

    def replaced(self, new: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's args and kwargs with the arguments named in ``new`` replaced."""
        args, kwargs = list(self.node.args), dict(self.node.kwargs)
        for name, value in new.items():
            slot = self._slots[name]
            if isinstance(slot, int):
                args[slot] = value
            else:
                kwargs[slot] = value
        return tuple(args), kwargs

    def is_weight(self, name: str) -> bool:
        operand = self.get(name)
        return isinstance(operand, torch.fx.Node) and self._is_weight(operand)

    def tensor(self, name: str) -> torch.Tensor:
        """Return the fake value of an operand.

        Raises:
            Unsliceable: it is not a tensor, or a tensor without strides.
        """
        operand = self.get(name)
        value = self._values.get(operand) if isinstance(operand, torch.fx.Node) else None
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
            raise Unsliceable(f"its {name} is not a strided tensor")
        return value

    def weight(self, name: str) -> torch.Tensor:
        if not self.is_weight(name):
            raise Unsliceable(f"its {name} is not a weight of the model")
        return self.tensor(name)


def static(tensor: torch.Tensor, dim: int) -> int:
    """Return a size of a tensor as a number.

    Raises:
        Unsliceable: it is symbolic.
    """
    size = to_expr(tensor.shape[dim])
    if not isinstance(size, int):
        raise Unsliceable(f"it would have to be sliced along the symbolic size {size}")
    return size


def _linear(call: Call) -> list[Recipe]:
    weight = call.weight("weight")
    if weight.dim() != 2:
        raise Unsliceable("its weight is not a matrix")
    bias = [Narrowed("bias", 0)] if call.get("bias") is not None else []
    over_inputs = (Narrowed("input", -1), Narrowed("weight", 1))
    return [
        Recipe("outputs", static(weight, 0), (Narrowed("weight", 0), *bias), cat_dim=-1),
        Recipe("inputs", static(weight, 1), over_inputs, first_only="bias" if bias else None),
    ]


def _matmul(call: Call) -> list[Recipe]:
    return _product(call, "input", "other")


def _product(call: Call, left: str, right: str, added: str | None = None) -> list[Recipe]:
    """Return the recipes of a matrix product plus ``added``, an operand that may be broadcast to the result."""
    if call.is_weight(right):
        weight, other, weight_name, other_name = call.weight(right), call.tensor(left), right, left
        free, contracted = -1, -2 if weight.dim() > 1 else -1
        other_contracted, cat_dim = -1, -1
    elif call.is_weight(left):
        weight, other, weight_name, other_name = call.weight(left), call.tensor(right), left, right
        free, contracted = -2, -1
        other_contracted = -2 if other.dim() > 1 else -1
        cat_dim = other_contracted
    else:
        raise Unsliceable("neither of its operands is a weight of the model")
    over_inputs = (Narrowed(weight_name, contracted), Narrowed(other_name, other_contracted))
    inputs = Recipe("inputs", static(weight, contracted), over_inputs, chained=added)
    if weight.dim() < 2:
        return [inputs]
    over_outputs = [Narrowed(weight_name, free)]
    if added is not None and (term := call.tensor(added)).dim() >= -cat_dim and static(term, cat_dim) != 1:
        over_outputs.append(Narrowed(added, cat_dim))
    return [Recipe("outputs", static(weight, free), tuple(over_outputs), cat_dim=cat_dim), inputs]


def _added_product(call: Call) -> list[Recipe]:
    return _product(call, "mat1", "mat2", added="input")


def _embedding(call: Call) -> list[Recipe]:
    weight = call.weight("weight")
    if call.get("max_norm") is not None:
        raise Unsliceable("max_norm writes its weight")
    if call.get("sparse"):
        raise Unsliceable("sparse=True gives its weight a gradient that slices cannot add up")
    return [Recipe("outputs", static(weight, 1), (Narrowed("weight", 1),), cat_dim=-1)]


def _convolution(call: Call) -> list[Recipe]:
    weight = call.weight("weight")
    if call.get("transposed"):
        raise Unsliceable("it is transposed")
    groups = call.get("groups")
    groups = 1 if groups is None else groups
    channels = 1 - weight.dim()
    outputs = static(weight, 0)
    biased = call.get("bias") is not None
    if groups == 1:
        over_outputs = [Narrowed("weight", 0)] + [Narrowed("bias", 0)] * biased
        over_inputs = (Narrowed("input", channels), Narrowed("weight", 1))
        return [
            Recipe("outputs", outputs, tuple(over_outputs), cat_dim=channels),
            Recipe("inputs", static(weight, 1), over_inputs, first_only="bias" if biased else None),
        ]
    each = outputs // groups
    over_groups = [Narrowed("input", channels, static(weight, 1)), Narrowed("weight", 0, each)]
    over_groups += [Narrowed("bias", 0, each)] * biased
    return [Recipe("outputs", groups, tuple(over_groups), cat_dim=channels, counted="groups")]


@dataclass(frozen=True)
class _Rule:
    recipes: Callable[[Call], list[Recipe]]
    names: tuple[str, ...]


_aten = torch.ops.aten
_LINEAR = _Rule(_linear, ("input", "weight", "bias"))
_MATMUL = _Rule(_matmul, ("input|self", "other|mat2|tensor2"))
_ADDMM = _Rule(_added_product, ("input|self", "mat1|batch1", "mat2|batch2"))
_TABLE = _Rule(
    _embedding, ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
)
_ATEN_TABLE = _Rule(_embedding, ("weight", "input|indices", "padding_idx", "scale_grad_by_freq", "sparse"))
_CONV = _Rule(_convolution, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
_ATEN_CONV = _Rule(
    _convolution,
    ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"),
)

# By target: functions and operators, or the name of a tensor's method.
_RULES: dict[Any, _Rule] = {
    F.linear: _LINEAR,
    _aten.linear.default: _LINEAR,
    **dict.fromkeys([operator.matmul, torch.matmul, torch.mm, torch.bmm, "matmul", "mm", "bmm"], _MATMUL),
    **dict.fromkeys([_aten.matmul.default, _aten.mm.default, _aten.bmm.default], _MATMUL),
    **dict.fromkeys([torch.addmm, torch.baddbmm, "addmm", "baddbmm"], _ADDMM),
    **dict.fromkeys([_aten.addmm.default, _aten.baddbmm.default], _ADDMM),
    F.embedding: _TABLE,
    torch.embedding: _ATEN_TABLE,
    _aten.embedding.default: _ATEN_TABLE,
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _CONV),
    **dict.fromkeys([_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default], _CONV),
    **dict.fromkeys([_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding], _CONV),
    _aten.convolution.default: _ATEN_CONV,
}


def read_call(
    node: torch.fx.Node, values: Mapping[torch.fx.Node, Any], is_weight: Callable[[torch.fx.Node], bool]
) -> tuple[Call, dict[Axis, Recipe]]:
    """Return a node's arguments by name, and its recipes by axis, the one to try first in front.

    Raises:
        Unsliceable: it has no recipe; the message says why.
    """
    rule = _RULES.get(node.target) if node.op in ("call_function", "call_method") else None
    if rule is None:
        raise Unsliceable("no rule says how to slice its operator")
    if node.kwargs.get("out") is not None:
        raise Unsliceable("it writes its result into out=")
    call = Call(node, rule.names, values, is_weight)
    recipes = {recipe.axis: recipe for recipe in rule.recipes(call) if recipe.units > 1}
    if not recipes:
        raise Unsliceable("its weight has a single row or column, which cannot be divided")
    return call, recipes
