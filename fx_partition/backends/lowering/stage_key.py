"""Stage keys: stages with equal keys can run the same code, with the weights and activations of each as arguments.

Terms
-----
stage key
    All that a compiler reads of a stage, as one hashable value.
identity key
    The key of an object whose contents cannot be compared safely (a function, a module, a tensor constant, an object of
    another library): it equals only itself. In doubt an object gets an identity key, as compiling a stage twice is
    better than mixing two up.

A key has the graph, node by node in order (kind, target, arguments, results), with the graphs of the bodies of
higher-order operators. For every input and result it has the shape and strides as expressions of the graph's symbols,
the dtype, device, storage offset and size, whether it needs a gradient, is a parameter or a view, and whether Dynamo
knows that it stays at its address; and which inputs share a storage. Names of nodes and their source lines do not
count. Grad mode, autocast and inductor's options are those of the caller, the same for all stages. Code that is kept
for other processes depends on more than the key: on `compiler_fingerprint`. `portable_key` writes a key as text.

Before (two stages; ``weight`` and ``weight_1`` are float32 of [64, 64])::

    relu = torch.relu(F.linear(x, weight));        return (relu,)
    relu_1 = torch.relu(F.linear(relu, weight_1)); return (relu_1,)

After: one key, ``(placeholder, placeholder, (F.linear, #0, #1), (torch.relu, #2), (output, #3))`` and two tensors.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Hashable, Sequence
from typing import Any

import sympy
import torch
import torch.fx

from fx_partition.passes.capture.fake_tensors import FakeTensor
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.capture.tensor_subclasses import is_subclass, plain_tensors, structure

from .torch_internals import fake_notes, static_input_type

# Values of these types are the same to a compiler if they are equal and of one type (1 == True == 1.0).
PLAIN = (bool, int, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)

# Entries that tracers leave on a node for people or for themselves; the key has the values of inputs elsewhere.
_IGNORED_META = frozenset(
    {
        "creation_timestamp",
        "example_value",
        "from_node",
        "fwd_nn_module_stack",
        "fwd_source_fn_stack",
        "grapharg",
        "nn_module_stack",
        "original_aten",
        "seq_nr",
        "source_fn_stack",
        "stack_trace",
        "tensor_dict",
        "tensor_meta",
        "torch_fn",
        "val",
    }
)


class IdentityKey:
    """A key that equals only keys of the same object; keeps the object alive, so that no other gets its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityKey) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def stage_key(gm: torch.fx.GraphModule, inputs: Sequence[Any], results: Sequence[Any]) -> Hashable:
    """Return the key of a stage, in time linear in the size of its graph.

    Args:
        gm: the graph of the stage.
        inputs: the inputs that it is to be compiled for: fake tensors, SymInts, numbers.
        results: the fake values that it returns.

    Example: the keys of two equal layers are equal; the keys of layers with different ``eps`` are not.
    """
    return _graph(gm), _values(inputs), _values(results)


def _graph(gm: torch.fx.GraphModule) -> Hashable:
    """Return the key of a graph and of the other attributes of its module."""
    places = {node: place for place, node in enumerate(gm.graph.nodes)}
    rows = tuple(
        (node.op, _target(gm, node), _plain(node.args, places), _plain(node.kwargs, places), _meta(node))
        for node in gm.graph.nodes
    )
    return rows, gm.training, _plain(gm.meta, {})


def _target(gm: torch.fx.GraphModule, node: torch.fx.Node) -> Hashable:
    if node.op in ("placeholder", "output"):
        return None
    if node.op in ("get_attr", "call_module"):
        attribute = operator.attrgetter(str(node.target))(gm)
        return _graph(attribute) if isinstance(attribute, torch.fx.GraphModule) else IdentityKey(attribute)
    return node.target if isinstance(node.target, str) else IdentityKey(node.target)


def _meta(node: torch.fx.Node) -> Hashable:
    noted = {name: value for name, value in node.meta.items() if name not in _IGNORED_META}
    return _plain(noted, {}), static_input_type(node)


def _plain(value: Any, places: dict[torch.fx.Node, int]) -> Hashable:
    """Return the key of an argument: nodes by their positions, containers by their contents."""
    if isinstance(value, torch.fx.Node):
        return torch.fx.Node, places[value]
    kind = type(value)
    if kind in PLAIN or isinstance(value, sympy.Basic):
        return kind, value
    if kind is float:
        return kind, value.hex()  # 0.0 == -0.0, and nan is not itself
    if isinstance(value, torch.SymInt):
        return torch.SymInt, to_expr(value)
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return kind, value.node.expr
    if isinstance(value, (list, tuple)):
        return kind, *(_plain(item, places) for item in value)
    if isinstance(value, dict):
        return kind, *((_plain(key, places), _plain(item, places)) for key, item in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and "__eq__" in vars(kind):
        return kind, *(_plain(getattr(value, field.name), places) for field in dataclasses.fields(value))
    if kind is slice:
        return kind, *(_plain(item, places) for item in (value.start, value.stop, value.step))
    return IdentityKey(value)


def _values(values: Sequence[Any]) -> Hashable:
    """Return the key of inputs (or results), with those that share a storage or are views of another."""
    storages: dict[int, int] = {}
    same: dict[int, int] = {}
    rows: list[Hashable] = []
    for place, value in enumerate(values):
        if isinstance(value, torch.Tensor) and is_subclass(value):
            rows.append(_subclass(value))
            continue
        if type(value) is not FakeTensor or value.layout != torch.strided:
            rows.append(IdentityKey(value) if isinstance(value, torch.Tensor) else _plain(value, {}))
            continue
        storage = value.untyped_storage()
        first = (same.setdefault(id(value), place), storages.setdefault(storage._cdata, place))
        # Only a view has a base, and only autograd looks at it.
        base = same.get(id(value._base), -1) if value._is_view() else None
        rows.append((_tensor(value), to_expr(storage.nbytes()), first, base))
    return tuple(rows)


def _subclass(value: torch.Tensor) -> Hashable:
    """Return the key of a tensor subclass, such as a quantised weight; alone, as none shares storages in a stage."""
    kind = _plain(structure(value), {})
    own = (tuple(map(to_expr, value.shape)), tuple(map(to_expr, value.stride())), value.dtype, value.requires_grad)
    return kind, own, isinstance(value, torch.nn.Parameter), _values(plain_tensors(value))


def _tensor(value: FakeTensor) -> Hashable:
    return (
        tuple(map(to_expr, value.shape)),
        tuple(map(to_expr, value.stride())),
        to_expr(value.storage_offset()),
        value.dtype,
        value.device,
        value.requires_grad,
        value.is_leaf,
        isinstance(value, torch.nn.Parameter),
        (value.is_conj(), value.is_neg(), value.is_inference()),
        tuple((name, _plain(note, {})) for name, note in sorted(fake_notes(value).items())),
    )
