"""From what a user has to what the passes read: a graph, a fake value for every node, the tensors that are weights.

Three roads: a GraphModule that carries shapes (Dynamo's ``example_value``, torch.export's ``val``) is taken as it is;
one without shapes is run on fake tensors made from ``example_inputs``; an ``nn.Module`` goes through torch.export.
The model and its graph are never changed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import shown

from .captured_graph import CapturedGraph, annotated, value_of, with_values
from .fake_tensors import FakeTensor, FakeTensorMode, ShapeEnv, is_view, new_fake_mode
from .metadata_changes import may_change_metadata, settle_metadata
from .module_members import all_tensors
from .newest_writes import with_newest

__all__ = ["CapturedGraph", "ExampleInputs", "Model", "annotated", "capture", "from_graph", "value_of", "with_values"]

# Releases of torch in which a block from a template is known to be what a run writes
# (`tests/passes/capture/test_block_replay.py`).
REPLAYED_RELEASES = ("2.13.",)
# One trace at a time: classes of the model are changed while it lasts.
_REPLAYING = threading.Lock()

Model: TypeAlias = "torch.fx.GraphModule | ExportedProgram | torch.nn.Module"
ExampleInputs: TypeAlias = "Sequence[Any] | Mapping[str, Any] | torch.Tensor"


class AlreadySplit(torch.fx.GraphModule):
    """The base of modules that were split by a plan: they are not captured again."""


def capture(model: Model, example_inputs: ExampleInputs | None = None, dynamic_shapes: Any = None) -> CapturedGraph:
    """The graph of ``model`` with shapes.

    Args:
        model: a GraphModule, an ExportedProgram, or a module that torch.export can trace.
        example_inputs: positional inputs as a sequence (or one tensor), or keyword inputs as a mapping. Needed unless
            the graph carries shapes.
        dynamic_shapes: as for ``torch.export.export``: which dimensions of the inputs are symbolic.

    Raises:
        PartitionError: there is no graph, or it carries no shapes and there are no ``example_inputs``, or it was cut.
        UnreadableError: an operator that changes the metadata of a tensor leaves what cannot be told.
        TypeError: ``model`` is none of these.
    """
    with _collector_at_rest():
        return settle_metadata(_read(model, example_inputs, dynamic_shapes))


def _read(model: Model, example_inputs: ExampleInputs | None, dynamic_shapes: Any) -> CapturedGraph:
    if isinstance(model, AlreadySplit):
        raise PartitionError(
            "this module is cut already, by the plan in .plan; plan or split the model that it was made from"
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
        return from_graph(model, _propagate(model, args, kwargs, dynamic_shapes))
    if isinstance(model, torch.nn.Module):
        if example_inputs is None:
            raise PartitionError(f"{type(model).__name__} must be traced first: pass example_inputs=")
        args, kwargs = pytree.tree_map(_of_its_own, (args, kwargs))
        return from_graph(_unguarded(export(model, args, kwargs, dynamic_shapes)))
    raise TypeError(f"expected a GraphModule, an ExportedProgram or an nn.Module, not {type(model).__name__}")


def export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """Trace a module by torch.export, blocks that repeat once (see `block_replay`)."""
    trace = functools.partial(torch.export.export, model, args, kwargs, dynamic_shapes=dynamic_shapes)
    with _collector_at_rest():
        if not torch.__version__.startswith(REPLAYED_RELEASES) or not _REPLAYING.acquire(blocking=False):
            return trace()
        from .block_replay import repeated_blocks_once  # other releases of torch may not have what it imports

        try:
            with repeated_blocks_once(model) as replays:
                program = trace()
        except Exception:
            if not replays.runs:
                raise
            return trace()  # if that is what is wrong with the model, it is said again
        finally:
            _REPLAYING.release()
        return trace() if replays.unconfirmed else program


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Collect no cyclic garbage meanwhile: a trace makes millions of objects that live as long as it does, and to look
    through them again and again takes a tenth to a quarter of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _no_tensor_twice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The examples, with a copy of a tensor that is given for a second input: tracers know inputs by the tensor, and
    would write a graph that reads one of them in place of the other."""
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
    """An example that is a view as a tensor of its own: torch.export makes symbols of the sizes of what it shows, and
    nothing says what these are."""
    if not isinstance(leaf, torch.Tensor) or not is_view(leaf):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def _unguarded(program: ExportedProgram) -> torch.fx.GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return with_newest(module)


def split_inputs(example_inputs: ExampleInputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call; no example: none."""
    if example_inputs is None:
        return (), {}
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (str, int, float)):
        raise PartitionError(
            f"example_inputs={shown(example_inputs)} must be the inputs of a call: a sequence of positional ones, one "
            f"tensor, or a mapping of keyword inputs; a budget goes by name, cache_bytes={shown(example_inputs)}"
        )
    return tuple(example_inputs), {}


def _carries_shapes(gm: torch.fx.GraphModule) -> bool:
    """Whether a tracer left values: an input of the graph has one, or a call does where there are no inputs."""
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder" and n.users]
    calls = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    return any(value_of(n) is not None for n in inputs or calls)


def from_graph(gm: torch.fx.GraphModule, values: Mapping[torch.fx.Node, Any] | None = None) -> CapturedGraph:
    """A graph whose nodes carry values, or whose ``values`` are given; weights are its ``get_attr`` tensors."""
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
        if value is not None:
            found[node] = value
    return CapturedGraph(gm, found, weights, names, is_specialized=values is None)


class ShapeInterpreter(torch.fx.Interpreter):
    """Runs a graph on fake tensors and keeps every node's value; weights are static."""

    def __init__(self, gm: torch.fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self._mode = mode
        self.values: dict[torch.fx.Node, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """On fakes of its parameters and buffers: in training mode a module writes its buffers."""
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
        """What a node is about to change is kept as it is, under the names that it has had."""
        given = {id(leaf) for n in changing.all_input_nodes for leaf in pytree.tree_leaves(self.env[n])}

        def keep(leaf: Any) -> Any:
            is_given = isinstance(leaf, torch.Tensor) and id(leaf) in given
            return torch.ops.aten.alias.default(leaf) if is_given else leaf

        for node, value in self.values.items():
            self.values[node] = pytree.tree_map(keep, value)


def _propagate(
    gm: torch.fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> dict[torch.fx.Node, Any]:
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
            f"the shape or the place that {name} takes is a number of the data, which only a run can tell; trace the "
            "model with torch.export or torch.compile, which say how such numbers may be used"
        ) from error
    return interpreter.values


def _dynamic_dims(names: list[str], dynamic_shapes: Any) -> dict[str, tuple[int, ...]]:
    """The symbolic dimensions of each input from torch.export's forms: {"x": {0: Dim}} or ({0: Dim}, None)."""
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
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return value
    sizes = [DimDynamic.DYNAMIC if d in dynamic else DimDynamic.STATIC for d in range(value.dim())]
    return mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


_MODULE_KEY = re.compile(r"_modules\['([^']*)'\]|_(?:parameters|buffers)\['([^']*)'\]")


def user_name(source: str) -> str:
    """The name that a user knows for a Dynamo source.

    Example::

        >>> user_name("L['self']._modules['layers']._modules['0']._parameters['weight']")
        'layers.0.weight'
        >>> user_name("L['kwargs']['input_ids']")
        'input_ids'
    """
    keys = ["".join(match) for match in _MODULE_KEY.findall(source)]
    if keys:
        return ".".join(keys)
    brackets = re.findall(r"\['([^']*)'\]|\[(\d+)\]", source)
    if not brackets:
        return source
    text, number = brackets[-1]
    return text or f"{brackets[0][0]}.{number}"


def module_path(node: torch.fx.Node) -> str:
    """The module that a node comes from, as a path that a user knows; "" where the tracer left none."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return str(node.target) if node.op == "call_module" else ""
    path, _ = list(stack.values())[-1]
    match = re.match(r"L\['[^']*'\](?:\.(.*))?$", path)
    path = (match[1] or "") if match else path
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return "" if path.startswith("_") else path
