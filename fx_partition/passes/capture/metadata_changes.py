"""Give each node one layout where an operator changes metadata.

The operators are ``t_``, ``unsqueeze_``, ``as_strided_``, ``set_`` and their like, and calls with ``out=``. They keep
the tensor object but give it other sizes, strides or memory. So one node stands for two layouts, before the operator
and after it, but a value that crosses a boundary must have one. Therefore every reader after the operator is made to
read the operator's own result, which is the same object, and every node gets the fake value of the time when it runs.

Before (Dynamo; the fake value of ``v`` is what ``t_`` left)::

    v = linear.view(4, 6)  [6, 4];  n = v.narrow(0, 0, 2)  [2, 6];  t_ = v.t_()  [6, 4];  mul = v * 3

After::

    v = linear.view(4, 6)  [4, 6];  n = v.narrow(0, 0, 2)  [2, 6];  t_ = v.t_()  [6, 4];  mul = t_ * 3

Tracers of the ATen level (torch.export) write the second form themselves. The nodes that touch such a tensor before
the operator stay together with it (see `atoms`), and a view of a weight that it touches is not free (see `analyze`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import UnreadableError

from .autocast_regions import Regions, under_autocast
from .captured_graph import CapturedGraph, with_values
from .fake_tensors import FakeTensor, fake_mode_of, run_fake
from .module_members import all_tensors
from .operators import HigherOrderOperator, OpOverload, OpOverloadPacket
from .symbolic_sizes import to_expr

# Nodes whose tensors exist before and after a call.
_HELD = ("placeholder", "get_attr")
# Composites of tagged operators, which torch does not tag.
_UNTAGGED = frozenset({"swapaxes_", "swapdims_"})


def may_change_metadata(node: torch.fx.Node) -> bool:
    """Whether a node may change the metadata of one of its arguments, by its operator's tags or an ``out=``."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.kwargs.get("out") is not None:
        return True
    if isinstance(node.target, OpOverload):
        return torch.Tag.inplace_view in node.target.tags
    name = _name(node)
    if name in _UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name, None) if name.endswith("_") and not name.startswith("_") else None
    if not isinstance(packet, OpOverloadPacket):
        return False
    overloads: list[str] = packet.overloads()  # type: ignore[no-untyped-call]
    return any(torch.Tag.inplace_view in getattr(packet, name).tags for name in overloads)


def changed_inputs(graph: torch.fx.Graph) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    """Return (input or attribute, operator) for each tensor that outlives a call and whose metadata it changes."""
    operators = (node for node in graph.nodes if may_change_metadata(node) and _is_tagged(node))
    changed = ((next(iter(node.args), None), node) for node in operators)
    return [(held, node) for held, node in changed if isinstance(held, torch.fx.Node) and held.op in _HELD]


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a tensor's sizes, strides, offset and storage: equal before and after an operator that keeps metadata."""
    sizes = (tuple(map(to_expr, tensor.shape)), tuple(map(to_expr, tensor.stride())))
    return (*sizes, to_expr(tensor.storage_offset()), id(tensor.untyped_storage()))


def settle_metadata(captured: CapturedGraph) -> CapturedGraph:
    """Return a graph in which each node has one layout; the graph itself if no operator changes metadata.

    Raises:
        UnreadableError: the metadata that an operator leaves is unknown; the message names the operator.
    """
    if not any(map(may_change_metadata, captured.gm.graph.nodes)):
        return captured
    return _Settler(captured).run()


class _Settler:
    """Runs the nodes of a graph that may pass a tensor on, on aliases that change as the graph's own tensors would."""

    def __init__(self, captured: CapturedGraph) -> None:
        self._captured = captured
        self._mode = fake_mode_of(leaf for value in captured.values.values() for leaf in pytree.tree_leaves(value))
        self._stale = set(self._found_stale())
        self._objects: dict[torch.fx.Node, Any] = {}  # the node's value, with an alias in place of each tensor
        self._weights: dict[int, torch.Tensor] = {}  # by the id of the weight, as many nodes may hold one
        self._newest: dict[int, torch.fx.Node] = {}  # by the id of an alias, the node that readers must read
        self._regions = Regions()

    def _found_stale(self) -> Iterator[int]:
        """Yield ids of fake tensors that a tracer changed in place: each is the value of an operator and of its input.
        """
        for node in filter(may_change_metadata, self._captured.gm.graph.nodes):
            results = {id(leaf) for leaf in _tensors(self._captured.values.get(node)) if isinstance(leaf, FakeTensor)}
            for source in node.all_input_nodes:
                yield from (id(leaf) for leaf in _tensors(self._captured.values.get(source)) if id(leaf) in results)

    def run(self) -> CapturedGraph:
        values: dict[torch.fx.Node, Any] = {}
        renamed: list[tuple[torch.fx.Node, torch.fx.Node, torch.fx.Node]] = []
        for node in self._captured.gm.graph.nodes:
            names = {source: self._name(source) for source in node.all_input_nodes}
            renamed += [(node, source, name) for source, name in names.items() if name is not source]
            traced = self._captured.values.get(node)
            self._regions.pass_node(node)
            found = self._objects[node] = self._run(node, traced)
            if traced is not None:
                values[node] = self._snapshot(found, traced) if self._is_stale(traced) else traced
        if not renamed and not self._stale:
            return self._captured
        settled = with_values(self._captured, values)
        twin = dict(zip(self._captured.gm.graph.nodes, settled.gm.graph.nodes, strict=True))
        for node, source, name in renamed:
            twin[node].replace_input_with(twin[source], twin[name])
        settled.gm.recompile()
        return settled

    def _is_stale(self, traced: Any) -> bool:
        return any(id(leaf) in self._stale for leaf in _tensors(traced))

    def _name(self, node: torch.fx.Node) -> torch.fx.Node:
        """Return the node to read instead of a node."""
        found = self._objects.get(node)
        return self._newest.get(id(found), node) if isinstance(found, torch.Tensor) else node

    def _run(self, node: torch.fx.Node, traced: Any) -> Any:
        """Return aliases for a node's value; an argument's own alias where the node returns that very tensor."""
        if node in self._captured.weights:
            return self._of_weight(self._captured.weights[node])
        if node.op == "placeholder" and self._is_stale(traced):
            raise UnreadableError(
                f"the metadata of the input {node.name} is changed in place, and its fake value is from after the "
                "change; use an operator that returns a new view, such as t() for t_()"
            )
        arguments = [leaf for source in node.all_input_nodes for leaf in _tensors(self._objects.get(source))]
        under_func = not all(isinstance(leaf, FakeTensor) for leaf in (*arguments, *_tensors(traced)))
        if under_func or not (may_change_metadata(node) or self._may_be_an_argument(node, traced)):
            return pytree.tree_map(self._aliased, traced)  # tensors of `torch.func` do not leave their region
        before = list(map(layout, arguments))
        try:
            found = self._call(node)
        except Exception as error:  # any operator may refuse fake tensors, with any exception
            if not may_change_metadata(node) and not self._is_stale(traced):
                return pytree.tree_map(self._aliased, traced)
            raise UnreadableError(
                f"{node.name} ({_name(node)}) reads or returns a tensor whose metadata is changed in place, and does "
                f"not run on fake tensors ({type(error).__name__}), so the metadata after it is unknown"
            ) from error
        for leaf, was in zip(arguments, before, strict=True):
            if layout(leaf) == was and not (found is leaf and _is_tagged(node)):
                continue
            if found is not leaf:
                raise UnreadableError(
                    f"{node.name} ({_name(node)}) changes the metadata of a tensor that it does not return, so no "
                    "node stands for the changed tensor"
                )
            self._newest[id(leaf)] = node
        return found

    def _may_be_an_argument(self, node: torch.fx.Node, traced: Any) -> bool:
        """Whether a node may return one of its arguments, as ``relu_`` does, or its fake value is out of date."""
        if not node.op.startswith("call_") or traced is None:
            return False
        if node.target is operator.getitem or self._is_stale(traced):
            return True
        if not isinstance(traced, torch.Tensor) or isinstance(node.target, HigherOrderOperator):
            return False
        given = (leaf for source in node.all_input_nodes for leaf in _tensors(self._objects.get(source)))
        return any(list(map(to_expr, leaf.shape)) == list(map(to_expr, traced.shape)) for leaf in given)

    def _call(self, node: torch.fx.Node) -> Any:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._objects.__getitem__)
        function: Any = node.target
        if node.op == "call_method":

            def function(own: Any, *given: Any, **named: Any) -> Any:
                return getattr(own, str(node.target))(*given, **named)
        elif node.op == "call_module":
            module = self._captured.gm.get_submodule(str(node.target))
            args = (all_tensors(module), *args)

            def function(tensors: dict[str, torch.Tensor], *given: Any, **named: Any) -> Any:
                return torch.func.functional_call(module, tensors, given, named)

        if _name(node) == "detach_":  # it refuses views, which aliases are, and changes no size
            return args[0]
        with torch.no_grad(), under_autocast(self._regions.open):  # in another dtype `to` might return its argument
            return run_fake(self._mode, function, args, kwargs)

    def _aliased(self, leaf: Any) -> Any:
        """Return an alias of a traced tensor: another object with the same metadata and memory."""
        return self._alias(leaf) if isinstance(leaf, FakeTensor) else leaf

    def _of_weight(self, weight: torch.Tensor) -> torch.Tensor:
        if id(weight) not in self._weights:
            with self._mode:
                fake = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device)
            self._weights[id(weight)] = fake
        return self._weights[id(weight)]

    def _alias(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            result = run_fake(self._mode, torch.ops.aten.alias.default, (tensor,), {})
        assert isinstance(result, torch.Tensor)
        return result

    def _snapshot(self, found: Any, traced: Any) -> Any:
        """Return copies of a value's aliases, with their metadata of this time."""

        def snapshot(leaf: Any, old: Any) -> Any:
            if not isinstance(leaf, FakeTensor) or not isinstance(old, torch.Tensor):
                return old
            if leaf.dtype != old.dtype:  # the tracer made it under autocast
                with self._mode:
                    strides = leaf.stride()
                    return torch.empty_strided(leaf.shape, strides, dtype=old.dtype, device=old.device)
            return self._alias(leaf).requires_grad_(old.requires_grad)

        return pytree.tree_map(snapshot, found, traced)


def _is_tagged(node: torch.fx.Node) -> bool:
    """Whether a node always changes metadata; one with ``out=`` seldom does."""
    return node.kwargs.get("out") is None


def _name(node: torch.fx.Node) -> str:
    """Return the operator's name without its overload."""
    if isinstance(node.target, OpOverload):
        return str(node.target.overloadpacket.__name__)
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
