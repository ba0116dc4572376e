"""Find the storages that each node of an exported graph touches, for the scorer.

Storages are distinguished by the identity of the fake tensors that torch.export left in ``meta["val"]`` and of the real
parameters. (One exception: a dropout that is off returns its input, but is exported with its own storage.)

Terms
-----
weight
    A storage that is there before the graph runs and stays: a parameter, buffer or constant, or an input that the graph
    writes. Parts of a storage that do not overlap are apart.
value
    Any other storage. It has one maker (none if it is an input of the graph). Views make no value.

Before: ``x, w = placeholder, get_attr; linear = linear(x, w); view = view(linear)``
After:  ``{"linear": Touch({x, linear}, {w: its bytes}), "view": Touch({linear}, {})}``
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

# Operators that read only rows of their first argument: the rows that they return.
GATHERS = frozenset({"aten::embedding", "aten::index_select", "aten::index", "aten::gather"})


@dataclass
class Touch:
    """The values, and the bytes of each weight, that one node touches."""

    values: set[int] = field(default_factory=set)
    weights: dict[int, int] = field(default_factory=dict)


class Storages:
    """The touches of all nodes of a graph.

    Attributes:
        weight_bytes: of each weight.
        value_bytes: of each value.
        maker: the node that makes each value that is not an input.
        touches: of each node that runs.
        returned: the values that the graph returns.
    """

    def __init__(self, gm: torch.fx.GraphModule) -> None:
        self.weight_bytes: list[int] = []
        self.value_bytes: dict[int, int] = {}
        self.maker: dict[int, str] = {}
        self._spans: dict[int, list[tuple[int, int]]] = {}  # storage -> (first byte, weight), ascending
        self._kept: list[torch.UntypedStorage] = []  # an identity is only good while the object lives
        self._same: dict[int, int] = {}  # storage -> the storage that it really is
        self._find_weights(gm)
        self._find_state(gm)
        self._find_values(gm)
        nodes = gm.graph.nodes
        self.touches = {node.name: self._touch(node) for node in nodes if node.op.startswith("call_")}
        outputs = [tensor for node in nodes if node.op == "output" for tensor in _read(node)]
        self.returned = {self._key(tensor) for tensor in outputs} & self.value_bytes.keys()

    def holds_only_weights(self, node: torch.fx.Node) -> bool:
        """Return whether a node is a weight or a view of one, which every partition can have for itself."""
        tensors = _tensors(node.meta.get("val"))
        return bool(tensors) and all(self._key(tensor) in self._spans for tensor in tensors)

    def _key(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        self._kept.append(storage)
        identity = int(storage._cdata)
        return self._same.get(identity, identity)

    def _find_weights(self, gm: torch.fx.GraphModule) -> None:
        """Find the parameters, buffers and constants: by storage, and within one by the parts that overlap."""
        spans: dict[int, list[tuple[int, int, torch.fx.Node]]] = {}
        for node in gm.graph.nodes:
            if node.op != "get_attr":
                continue
            tensor = operator.attrgetter(node.target)(gm)
            if isinstance(tensor, torch.Tensor):
                first = int(tensor.storage_offset()) * tensor.element_size()
                reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
                end = first + (int(reach) * tensor.element_size() if tensor.numel() else 0)
                spans.setdefault(self._key(tensor), []).append((first, end, node))
        for parts in spans.values():
            begin = end = -1
            for first, last, node in sorted(parts, key=lambda part: part[:2]):
                if first >= end:
                    self.weight_bytes.append(0)
                    begin = first
                end = max(end, last)
                self.weight_bytes[-1] = end - begin
                # The graph's tensors lie in the storage of the fake, at the same offsets.
                self._spans.setdefault(self._key(node.meta["val"]), []).append((first, len(self.weight_bytes) - 1))

    def _find_state(self, gm: torch.fx.GraphModule) -> None:
        """Add the inputs that an operator writes to the weights."""
        inputs = {
            self._key(tensor): int(tensor.untyped_storage().nbytes())
            for node in gm.graph.nodes
            if node.op == "placeholder"
            for tensor in _tensors(node.meta.get("val"))
        }
        for node in gm.graph.nodes:
            for tensor in _written(node):
                key = self._key(tensor)
                if key in inputs and key not in self._spans:
                    self._spans[key] = [(0, len(self.weight_bytes))]
                    self.weight_bytes.append(inputs[key])

    def _weight_of(self, tensor: torch.Tensor) -> int | None:
        """Return the weight that a tensor is part of; None if it is a value."""
        first = tensor.storage_offset() * tensor.element_size()
        spans = self._spans.get(self._key(tensor), [])
        return next((weight for begin, weight in reversed(spans) if begin <= first), None)

    def _find_values(self, gm: torch.fx.GraphModule) -> None:
        for node in gm.graph.nodes:
            if node.target is torch.ops.aten.dropout.default and not node.args[2]:
                self._same[self._key(node.meta["val"])] = self._key(node.all_input_nodes[0].meta["val"])
            for tensor in _tensors(node.meta.get("val")):
                key = self._key(tensor)
                if key not in self._spans and key not in self.value_bytes:
                    self.value_bytes[key] = int(tensor.untyped_storage().nbytes())
                    if node.op != "placeholder":
                        self.maker[key] = node.name

    def _touch(self, node: torch.fx.Node) -> Touch:
        own = {self._key(tensor) for tensor in _tensors(node.meta.get("val"))}
        if node.target is operator.getitem and not isinstance(node.all_input_nodes[0].meta.get("val"), torch.Tensor):
            return Touch(own & self.value_bytes.keys())  # it picks one tensor of several
        read = _read(node)
        touch = Touch((own | {self._key(tensor) for tensor in read}) & self.value_bytes.keys())
        written = {self._key(tensor) for tensor in _written(node)}
        table = _gathered(node)
        for tensor in read:
            key, weight = self._key(tensor), self._weight_of(tensor)
            if weight is None:
                continue
            bytes_read = tensor.numel() * tensor.element_size()
            if tensor is table:
                bytes_read = min(bytes_read, sum(int(t.untyped_storage().nbytes()) for t in _tensors(node.meta["val"])))
            elif key in written:
                bytes_read = self.weight_bytes[weight]
            elif key in own:  # a view reads nothing
                continue
            touch.weights[weight] = min(self.weight_bytes[weight], touch.weights.get(weight, 0) + bytes_read)
        return touch


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _read(node: torch.fx.Node) -> list[torch.Tensor]:
    return [tensor for source in node.all_input_nodes for tensor in _tensors(source.meta.get("val"))]


def _arguments(node: torch.fx.Node) -> Iterator[tuple[torch.Argument, Any]]:
    """Return the operator's formal arguments with the values that the node passes."""
    if isinstance(node.target, torch._ops.OpOverload):
        formal = node.target._schema.arguments
        yield from zip(formal, node.args, strict=False)
        yield from ((f, node.kwargs[f.name]) for f in formal if f.name in node.kwargs)


def _written(node: torch.fx.Node) -> Iterator[torch.Tensor]:
    """Return the tensors that an operator's schema says it writes."""
    for formal, actual in _arguments(node):
        if formal.alias_info is not None and formal.alias_info.is_write and isinstance(actual, torch.fx.Node):
            yield from _tensors(actual.meta.get("val"))


def _gathered(node: torch.fx.Node) -> torch.Tensor | None:
    """Return the table, if the node only gathers rows of its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.name not in GATHERS:
        return None
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, torch.fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None
