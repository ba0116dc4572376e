"""Capture a user's model: a graph, a fake value for every node, and the tensors that are weights.

There are three ways. A GraphModule that carries shapes (Dynamo's ``example_value``, torch.export's ``val``) is taken
as it is. One without shapes is run on fake tensors made from ``example_inputs`` (see `shape_propagation`). An
``nn.Module`` goes through torch.export. The model and its graph are never changed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import shown

from .captured_graph import CapturedGraph, value_of
from .fake_tensors import is_view
from .late_code import late_code
from .metadata_changes import settle_metadata
from .newest_writes import with_newest
from .shape_propagation import run_on_examples
from .tensor_subclasses import inner_access, only_accessed

# Releases of torch in which `block_replay` is known to give the graph of torch.export alone
# (`tests/passes/capture/test_block_replay.py`).
REPLAYED_RELEASES = ("2.13.",)
# One replayed trace at a time, as it changes the model's classes while it runs.
_REPLAYING = threading.Lock()

Model: TypeAlias = "torch.fx.GraphModule | ExportedProgram | torch.nn.Module"
ExampleInputs: TypeAlias = "Sequence[Any] | Mapping[str, Any] | torch.Tensor"


class AlreadySplit(torch.fx.GraphModule):
    """The base of modules that were split by a plan; `capture` refuses them."""


def capture(model: Model, example_inputs: ExampleInputs | None = None, dynamic_shapes: Any = None) -> CapturedGraph:
    """Return the graph of ``model`` with shapes.

    Args:
        model: a GraphModule, an ExportedProgram, or a module that torch.export can trace.
        example_inputs: positional inputs as a sequence (or one tensor), or keyword inputs as a mapping. Needed unless
            the graph carries shapes.
        dynamic_shapes: as for ``torch.export.export``: which dimensions of the inputs are symbolic.

    Raises:
        PartitionError: the model was split already, or it needs ``example_inputs`` and there are none.
        UnreadableError: the metadata that an operator leaves on a tensor is unknown.
        TypeError: ``model`` is none of these.
    """
    with collector_at_rest():
        return settle_metadata(_read(model, example_inputs, dynamic_shapes))


def _read(model: Model, example_inputs: ExampleInputs | None, dynamic_shapes: Any) -> CapturedGraph:
    if isinstance(model, AlreadySplit):
        raise PartitionError(
            "this module is split already, by the plan in .plan; plan or split the model that it was made from"
        )
    args, kwargs = _no_tensor_twice(*split_inputs(example_inputs))
    if isinstance(model, ExportedProgram):
        return from_graph(_unguarded(model))
    if isinstance(model, torch.fx.GraphModule):
        if _carries_shapes(model):
            return from_graph(with_newest(model))
        if example_inputs is None:
            raise PartitionError(
                "the graph carries no shapes, so nothing says how large its tensors are: pass example_inputs= "
                "(and dynamic_shapes= for symbolic dimensions), or a graph from torch.export or Dynamo"
            )
        return from_graph(model, run_on_examples(model, args, kwargs, dynamic_shapes))
    if isinstance(model, torch.nn.Module):
        if example_inputs is None:
            raise PartitionError(f"{type(model).__name__} must be traced first: pass example_inputs=")
        args, kwargs = pytree.tree_map(_of_its_own, (args, kwargs))
        return from_graph(_unguarded(export(model, args, kwargs, dynamic_shapes)))
    raise TypeError(f"expected a GraphModule, an ExportedProgram or an nn.Module, not {type(model).__name__}")


def export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """Trace a module by torch.export; repeated blocks are traced once (see `block_replay`)."""
    trace = functools.partial(torch.export.export, model, args, kwargs, dynamic_shapes=dynamic_shapes)
    with collector_at_rest():
        if not torch.__version__.startswith(REPLAYED_RELEASES) or not _REPLAYING.acquire(blocking=False):
            return trace()
        from .block_replay import repeated_blocks_once  # its imports may be missing in other releases of torch

        try:
            with late_code(), repeated_blocks_once(model) as replays:
                program = trace()
        except Exception:
            if not replays.runs:
                raise
            return trace()  # an error of the model's own is raised again
        finally:
            _REPLAYING.release()
        return trace() if replays.unconfirmed else program


@contextlib.contextmanager
def collector_at_rest() -> Iterator[None]:
    """Switch off the collector of cyclic garbage: a trace makes millions of objects that live as long as it does, and
    scanning them again and again takes a tenth to a quarter of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _no_tensor_twice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy a tensor that is given for a second input: tracers know inputs by the tensor, and would write a graph that
    reads one input in place of the other."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in seen:
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        seen.add(id(leaf))
        return leaf

    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(own, (args, kwargs))
    return found


def _of_its_own(leaf: Any) -> Any:
    """Copy an example that is a view: torch.export would make symbols of its base's sizes, whose numbers no input
    tells."""
    if not isinstance(leaf, torch.Tensor) or not is_view(leaf):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def _unguarded(program: ExportedProgram) -> torch.fx.GraphModule:
    with late_code():
        module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return with_newest(module)


def split_inputs(example_inputs: ExampleInputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of one call."""
    if example_inputs is None:
        return (), {}
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (str, int, float)):
        raise PartitionError(
            f"example_inputs={shown(example_inputs)} must be the inputs of a call: a sequence of positional inputs, "
            f"one tensor, or a mapping of keyword inputs; give a budget by name, cache_bytes={shown(example_inputs)}"
        )
    return tuple(example_inputs), {}


def _carries_shapes(gm: torch.fx.GraphModule) -> bool:
    """Whether a tracer left values: an input of the graph has one; or a call has one, if the graph has no inputs."""
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder" and n.users]
    calls = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    return any(value_of(n) is not None for n in inputs or calls)


def from_graph(gm: torch.fx.GraphModule, values: Mapping[torch.fx.Node, Any] | None = None) -> CapturedGraph:
    """Return a captured graph; its weights are its ``get_attr`` tensors, of subclasses the inner tensors.

    Args:
        values: the fake value of each node; None if the nodes carry them.
    """
    weights: dict[torch.fx.Node, torch.Tensor] = {}
    names: dict[torch.fx.Node, str] = {}
    found: dict[torch.fx.Node, Any] = {}
    for node in gm.graph.nodes:
        value = value_of(node) if values is None else values.get(node)
        if node.op == "get_attr":
            attribute = operator.attrgetter(node.target)(gm)
            if isinstance(attribute, torch.Tensor):
                weights[node] = attribute
                names[node] = node.target
                value = attribute if value is None else value
        elif node.op == "placeholder":
            names[node] = str(node.target)
        elif (inner := inner_access(node, weights)) is not None:
            names[node] = f"{names[node.args[0]]}.{inner[0]}"
            weights[node] = inner[1]
            value = inner[1] if value is None else value
        if value is not None:
            found[node] = value
    for node in [node for node in weights if only_accessed(node, weights)]:
        del weights[node]
    return CapturedGraph(gm, found, weights, names, is_specialized=values is None)
