"""Run a graph without shapes on fake tensors, to find the fake value of each node.

Before: a graph of ``torch.fx.symbolic_trace``: ``linear = F.linear(x, w)``
After ``run_on_examples`` with x of 2 rows, the first dimension dynamic: ``{x: [s0, 8], w: [16, 8], linear: [s0, 16]}``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError

from .fake_tensors import FakeTensorMode, ShapeEnv, is_fake, new_fake_mode
from .metadata_changes import may_change_metadata
from .module_members import all_tensors
from .tensor_subclasses import is_subclass


class ShapeInterpreter(torch.fx.Interpreter):
    """An interpreter that runs a graph on fake tensors and keeps every node's value; sizes of weights are static."""

    def __init__(self, gm: torch.fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self._mode = mode
        self.values: dict[torch.fx.Node, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module on fakes of its parameters and buffers, as in training mode it writes its buffers."""
        module = self.fetch_attr(target)
        own: dict[str, torch.Tensor] = {n: _fakify(self._mode, t, ()) for n, t in all_tensors(module).items()}
        return torch.func.functional_call(module, own, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _fakify(self._mode, self.fetch_attr(target), ())

    def run_node(self, n: torch.fx.Node) -> Any:
        if may_change_metadata(n):
            self._keep_layouts(n)
        result = super().run_node(n)
        if n.op != "output" and not (n.op == "get_attr" and isinstance(result, torch.nn.Module)):
            self.values[n] = result
        return result

    def _keep_layouts(self, changing: torch.fx.Node) -> None:
        """Replace the values that a node is about to change by aliases, which keep their layouts."""
        given = {id(leaf) for n in changing.all_input_nodes for leaf in pytree.tree_leaves(self.env[n])}

        def keep(leaf: Any) -> Any:
            is_given = isinstance(leaf, torch.Tensor) and id(leaf) in given
            return torch.ops.aten.alias.default(leaf) if is_given else leaf

        for node, value in self.values.items():
            self.values[node] = pytree.tree_map(keep, value)


def run_on_examples(
    gm: torch.fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> dict[torch.fx.Node, Any]:
    """Run a graph on fakes of example inputs, and return each node's fake value.

    Args:
        args, kwargs: inputs by position and by name of the placeholder.
        dynamic_shapes: as for ``torch.export.export``.

    Raises:
        PartitionError: the inputs do not fit the graph, or a shape depends on data.
    """
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    by_name = dict(zip((str(n.target) for n in placeholders), args, strict=False)) | kwargs
    missing = [str(n.target) for n in placeholders if str(n.target) not in by_name and not n.args]
    if missing or len(args) > len(placeholders):
        raise PartitionError(
            f"example_inputs do not fit the graph: it takes {', '.join(str(n.target) for n in placeholders)}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )
    dynamic = _dynamic_dims([str(n.target) for n in placeholders], dynamic_shapes)
    mode = new_fake_mode(ShapeEnv())
    inputs = []
    for node in placeholders:
        name = str(node.target)
        value = by_name[name] if name in by_name else node.args[0]
        inputs.append(pytree.tree_map(lambda leaf, name=name: _fakify(mode, leaf, dynamic.get(name, ())), value))
    interpreter = ShapeInterpreter(gm, mode)
    try:
        with mode, torch.no_grad():
            interpreter.run(*inputs)
    except GuardOnDataDependentSymNode as error:
        name = next(n.name for n in gm.graph.nodes if n not in interpreter.values)
        raise PartitionError(
            f"{name} has a data-dependent shape, or reads at a data-dependent index: trace the model with torch.export "
            "or torch.compile, which can express it"
        ) from error
    return interpreter.values


def _dynamic_dims(names: list[str], dynamic_shapes: Any) -> dict[str, tuple[int, ...]]:
    """Return the symbolic dimensions of each input from torch.export's forms: {"x": {0: Dim}} or ({0: Dim}, None)."""
    if dynamic_shapes is None:
        return {}
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=False))
    unknown = set(dynamic_shapes) - set(names)
    if unknown:
        raise PartitionError(
            f"dynamic_shapes names {', '.join(sorted(unknown))}; the graph's inputs are {', '.join(names)}"
        )
    result = {}
    for name, spec in dynamic_shapes.items():
        if spec is None:
            continue
        items = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
        result[name] = tuple(dim for dim, size in items if size is not None and not isinstance(size, int))
    return result


def _fakify(mode: FakeTensorMode, value: Any, dynamic: tuple[int, ...]) -> Any:
    if not isinstance(value, torch.Tensor) or is_fake(value):
        return value
    if is_subclass(value):
        return mode.from_tensor(value, static_shapes=True)
    sizes = [DimDynamic.DYNAMIC if d in dynamic else DimDynamic.STATIC for d in range(value.dim())]
    return mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
