"""Write the slices of one node into its graph.

Before::

    linear = F.linear(x, weight, bias)

After ``Slicing("linear", "outputs", 2)``, weight 8 x 4::

    linear_slice_0_weight = torch.narrow(weight, 0, 0, 4);  linear_slice_0_bias = torch.narrow(bias, 0, 0, 4)
    linear_slice_0 = F.linear(x, linear_slice_0_weight, linear_slice_0_bias)
    linear_slice_1_weight = torch.narrow(weight, 0, 4, 4);  linear_slice_1_bias = torch.narrow(bias, 0, 4, 4)
    linear_slice_1 = F.linear(x, linear_slice_1_weight, linear_slice_1_bias)
    linear = torch.cat([linear_slice_0, linear_slice_1], dim=-1)

After ``Slicing("linear", "inputs", 2)``::

    linear_slice_0_input = torch.narrow(x, -1, 0, 2);  linear_slice_0_weight = torch.narrow(weight, 1, 0, 2)
    linear_slice_0 = F.linear(linear_slice_0_input, linear_slice_0_weight, bias)
    linear_slice_1_input = torch.narrow(x, -1, 2, 2);  linear_slice_1_weight = torch.narrow(weight, 1, 2, 2)
    linear_slice_1 = F.linear(linear_slice_1_input, linear_slice_1_weight, None)
    linear = torch.add(linear_slice_0, linear_slice_1)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

from ..capture.autocast_regions import under_autocast
from ..capture.fake_tensors import FakeTensorMode, run_fake
from ..capture.operators import OpOverload
from ..capture.symbolic_sizes import to_expr
from .rules import Call, Recipe, Unsliceable


class SliceWriter:
    """Writes the slices of one node.

    Args:
        graph: the graph; it is changed.
        values: fake values of its nodes; those of the new ones are added.
        mode: the fake tensor mode of these values.
        autocast: the nodes that enter the autocast regions around the node.
        call, recipe: the node, and how to slice it.
    """

    def __init__(
        self,
        graph: torch.fx.Graph,
        values: dict[torch.fx.Node, Any],
        mode: FakeTensorMode,
        autocast: tuple[torch.fx.Node, ...],
        call: Call,
        recipe: Recipe,
    ) -> None:
        self._graph, self._values, self._mode, self._autocast = graph, values, mode, autocast
        self._call, self._recipe = call, recipe
        self._node = call.node
        aten = isinstance(call.node.target, OpOverload)
        self._narrow = torch.ops.aten.slice.Tensor if aten else torch.narrow
        self._cat = torch.ops.aten.cat.default if aten else torch.cat
        self._add = torch.ops.aten.add.Tensor if aten else torch.add
        self._key = next((key for key in ("val", "example_value") if key in call.node.meta), "")
        # A tracer's value on the original describes the whole result, so it is not copied to slices.
        self._meta = {k: v for k, v in call.node.meta.items() if k not in ("val", "example_value", "tensor_meta")}
        self._grad = bool(getattr(values.get(call.node), "requires_grad", False))

    def write(self, parts: int) -> tuple[str, ...]:
        """Write ``parts`` slices of nearly equal size, and turn the node into their join; return the names of both.

        Raises:
            Unsliceable: the joined slices have other strides than the node's result, so its views would be wrong.
        """
        node, recipe = self._node, self._recipe
        before = self._values[node]
        bounds = [i * recipe.units // parts for i in range(parts + 1)]
        last = parts - 1
        made: list[torch.fx.Node] = []
        total: torch.fx.Node | None = None
        with self._graph.inserting_before(node):
            for i in range(parts):
                args, kwargs = self._arguments(i, bounds[i], bounds[i + 1], total)
                joint = recipe.chained is not None and i == last
                part = self._put(f"_slice_{i}", node.op, node.target, args, kwargs, joint=joint)
                made.append(part)
                if recipe.chained is not None or total is None:
                    total = part
                elif recipe.cat_dim is None:
                    total = self._put(f"_sum_{i}", "call_function", self._add, (total, part), {}, joint=i == last)
                    made.append(total)
            if recipe.cat_dim is not None:
                self._put("", "call_function", self._cat, (made, recipe.cat_dim), {}, joint=True)
        if not _same_layout(before, self._values[node]):
            raise Unsliceable("joined slices would have other strides than its result")
        return (*(part.name for part in made if part is not node), node.name)

    def sample(self, parts: int) -> tuple[str, ...]:
        """Write the first slice of ``parts``, which is the smallest, and one of the largest; keep the node."""
        first = self._recipe.units // parts
        end = first - (-self._recipe.units // parts)
        made: list[torch.fx.Node] = []
        with self._graph.inserting_before(self._node):
            for i, (begin, stop) in enumerate([(0, first), (first, end)]):
                args, kwargs = self._arguments(i, begin, stop, made[0] if made else None)
                made.append(self._put(f"_slice_{i}", self._node.op, self._node.target, args, kwargs))
        return tuple(part.name for part in made)

    def _arguments(
        self, i: int, first: int, end: int, total: torch.fx.Node | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the args and kwargs of slice i over the units [first, end), after writing its narrowed operands."""
        recipe, new = self._recipe, dict[str, Any]()
        for part in recipe.narrowed:
            start, stop = first * part.scale, end * part.scale
            span = stop if self._narrow is not torch.narrow else stop - start
            args = (self._call.get(part.operand), part.dim, start, span)
            new[part.operand] = self._put(f"_slice_{i}_{part.operand}", "call_function", self._narrow, args, {})
        if recipe.counted is not None:
            new[recipe.counted] = end - first
        if i > 0 and recipe.first_only is not None:
            new[recipe.first_only] = None
        if i > 0 and recipe.chained is not None:
            new[recipe.chained] = total
        args, kwargs = self._call.replaced(new)
        if i > 0 and recipe.chained is not None:
            kwargs.pop("beta", None)
        return args, kwargs

    def _put(
        self, suffix: str, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], joint: bool = False
    ) -> torch.fx.Node:
        """Write a node before the sliced one; the ``joint`` replaces the sliced one, and keeps its name and users."""
        value = self._value(op, target, args, kwargs)
        if joint:
            made = self._node
            made.op, made.target, made.args, made.kwargs = op, target, args, kwargs
        else:
            made = self._graph.create_node(op, target, args, kwargs, name=f"{self._node.name}{suffix}")
        made.meta = dict(self._meta)
        if self._key:
            made.meta[self._key] = value
        self._values[made] = value
        return made

    def _value(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch.set_grad_enabled(self._grad), under_autocast(self._autocast):
            args, kwargs = torch.fx.map_arg((args, kwargs), self._values.get)
            function = getattr(torch.Tensor, target) if op == "call_method" else target
            return run_fake(self._mode, function, args, kwargs)


def _same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of the same shape have equal strides, except in dimensions of size 1."""
    strides = zip(map(to_expr, a.shape), map(to_expr, a.stride()), map(to_expr, b.stride()), strict=True)
    return all(size == 1 or one == other for size, one, other in strides)
