"""Walks a graph once and gathers its facts; `facts` defines the terms."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import sympy
import torch
import torch.fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from .capture import Captured, module_path
from .effects import Alias, Effect, distinct_tensors
from .facts import Facts, Role, Step, Value
from .fake import new_fake_mode, shape_env_of
from .node_effects import Effects
from .symbols import Size, symbols_of, to_expr, undominated
from .weights import Weights, find_weights

# A place says where a tensor lives: ("v", value) or ("w", weight).
_Place = tuple[str, int]


class _Reader:
    """Walks the graph once and gathers facts."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._graph = captured.gm.graph
        self._modules = dict(captured.gm.named_modules())
        shape_env = shape_env_of(
            leaf for value in captured.values.values() for leaf in pytree.tree_leaves(value)
        )
        self.symbols = symbols_of(_sized(captured.values.values()), captured.dims, shape_env)
        self._effects = Effects(self._modules, new_fake_mode(shape_env), self.symbols)
        tensors = {node.name: (captured.names[node], tensor) for node, tensor in captured.weights.items()}
        for node in self._graph.nodes:
            if node.op == "call_module":
                tensors |= {name: (name, tensor) for name, tensor in self._module_tensors(node).items()}
        self._weights: Weights = find_weights(tensors)
        self._places: dict[torch.fx.Node, Any] = {}  # like the node's value, with places for tensors
        self._values: list[Value] = []
        self._steps: list[Step] = []
        self._free: set[torch.fx.Node] = set()

    def _module_tensors(self, node: torch.fx.Node) -> dict[str, torch.Tensor]:
        module = self._modules[str(node.target)]
        named = [*module.named_parameters(), *module.named_buffers()]
        return {f"{node.target}.{name}": tensor for name, tensor in named}

    def read(self) -> Facts:
        for node in self._graph.nodes:
            match node.op:
                case "placeholder":
                    self._read_input(node)
                case "get_attr":
                    if node in self._captured.weights:
                        self._places[node] = ("w", self._weights.of[node.name])
                    self._free.add(node)
                case "output":
                    self._read_output(node)
                case _:
                    self._read_call(node)
        return self._with_state()

    def _read_input(self, node: torch.fx.Node) -> None:
        self._free.add(node)
        if node in self._captured.weights:
            self._places[node] = ("w", self._weights.of[node.name])
            return
        value = self._captured.values.get(node)
        self._places[node] = self._new_places(node, value, Role.INPUT, {})

    def _new_places(self, node: torch.fx.Node, value: Any, role: Role, slots: dict[int, int]) -> Any:
        """A value for each tensor that the caller or an operator that we cannot run hands us; views share one."""

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return None
            storage = leaf.untyped_storage()
            if id(storage) not in slots:
                size = storage.nbytes() if role is Role.INPUT else leaf.numel() * leaf.element_size()
                slots[id(storage)] = self._new_value(node, to_expr(size), role)
            return ("v", slots[id(storage)])

        return pytree.tree_map(place, value)

    def _new_value(self, node: torch.fx.Node, size: Size, role: Role) -> int:
        made_at = -1 if role is Role.INPUT else len(self._steps)
        name = self._captured.names.get(node, node.name)
        self._values.append(Value(name, size, role, made_at))
        return len(self._values) - 1

    def _read_output(self, node: torch.fx.Node) -> None:
        for source in node.all_input_nodes:
            for place in _leaf_places(self._places.get(source)):
                if place[0] == "v":
                    self._values[place[1]].returned = True

    # ---- calls

    def _read_call(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem and self._pick(node):
            return
        if self._is_free_scalar(node):
            self._free.add(node)
            return
        step = Step(node.name, module_path(node))
        touched: dict[int, None] = {}
        reads: dict[int, None] = {}
        for source in node.all_input_nodes:
            for kind, number in _leaf_places(self._places.get(source)):
                (touched if kind == "v" else reads)[number] = None
        value = self._captured.values.get(node)
        region = self._effects.enter_or_exit(node)
        if not region and (touched or reads or _tensors(value) or node.op == "call_module"):
            self._apply(node, value, step, touched, reads)
            if self._is_free_view(node, step):
                self._free.add(node)
                return
        step.values = tuple(touched)
        self._steps.append(step)

    def _pick(self, node: torch.fx.Node) -> bool:
        """``getitem`` of a tuple: its value lives where the tuple's element does."""
        source, key = node.args
        if not isinstance(source, torch.fx.Node) or isinstance(self._captured.values.get(source), torch.Tensor):
            return False
        places = self._places.get(source)
        try:
            self._places[node] = places[key] if places is not None else None
        except (TypeError, KeyError, IndexError):
            return False
        if source in self._free:
            self._free.add(node)
            return True
        step = Step(node.name, module_path(node))
        step.values = tuple(dict.fromkeys(n for kind, n in _leaf_places(self._places[node]) if kind == "v"))
        self._steps.append(step)
        return True

    def _is_free_scalar(self, node: torch.fx.Node) -> bool:
        """A Python number made from free nodes alone. A size read from a tensor is none: it would carry the tensor."""
        value = self._captured.values.get(node)
        if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return False
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) and free_unbacked_symbols(value):
            return False
        for source in node.all_input_nodes:
            if source not in self._free:
                return False
            tensor = self._captured.values.get(source)
            if isinstance(tensor, torch.Tensor) and (source in self._captured.weights or tensor.dim() > 0):
                return False
        return True

    def _is_free_view(self, node: torch.fx.Node, step: Step) -> bool:
        places = list(_leaf_places(self._places.get(node)))
        return (
            bool(places)
            and all(kind == "w" for kind, _ in places)
            and not step.weights
            and not step.weight_writes
            and all(source in self._free for source in node.all_input_nodes)
        )

    def _apply(
        self, node: torch.fx.Node, value: Any, step: Step, touched: dict[int, None], reads: dict[int, None]
    ) -> None:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._captured.values.get(n))
        module_tensors = self._module_tensors(node) if node.op == "call_module" else {}
        effect = self._effects.of(node, args, kwargs, module_tensors)
        if effect is None:
            self._assume(node, value, step, [*reads, *(self._weights.of[name] for name in module_tensors)])
            touched |= dict.fromkeys(number for kind, number in _leaf_places(self._places[node]) if kind == "v")
            return
        places = self._argument_places(node, args, kwargs, module_tensors)
        self._places[node], made = self._output_places(node, value, effect, places)
        for number in effect.reads | effect.writes:
            self._touch_weight(step, places[number], None)
        for number, size in effect.gathers:
            self._touch_weight(step, places[number], size)
        written = [places[number] for number in effect.writes]
        step.writes = frozenset(place[1] for place in written if place[0] == "v")
        step.weight_writes = frozenset(place[1] for place in written if place[0] == "w")
        step.unknown = effect.unknown
        own: Size = 0
        for number in made:
            own = own + self._values[number].bytes
        step.workspace = undominated(to_expr(sympy.expand(peak - own)) for peak in effect.peaks)
        touched |= dict.fromkeys(number for kind, number in _leaf_places(self._places[node]) if kind == "v")
        touched |= dict.fromkeys(made)

    def _assume(self, node: torch.fx.Node, value: Any, step: Step, reads: list[int]) -> None:
        """An operator that does not run on fakes: reads all it is given; by its name or schema it may write."""
        step.unknown = (_target_name(node),)
        step.weights = {number: self._weights.bytes[number] for number in reads}
        own = next((p for source in node.all_input_nodes[:1] for p in _leaf_places(self._places.get(source))), None)
        if own is None or not _works_in_place(node):
            self._places[node] = self._new_places(node, value, Role.ACTIVATION, {})
            return
        self._places[node] = pytree.tree_map(lambda leaf: own if isinstance(leaf, torch.Tensor) else None, value)
        kind, number = own
        if kind == "v":
            step.writes = frozenset({number})
        else:
            step.weight_writes = frozenset({number})

    def _touch_weight(self, step: Step, place: _Place, gathered: Size | None) -> None:
        kind, number = place
        if kind != "w":
            return
        whole = self._weights.bytes[number]
        if gathered is None or step.weights.get(number) == whole:
            step.weights[number] = whole
        else:
            step.weights[number] = step.weights.get(number, 0) + gathered

    def _argument_places(
        self, node: torch.fx.Node, args: Any, kwargs: Any, module_tensors: dict[str, torch.Tensor]
    ) -> list[_Place]:
        """The place of every distinct tensor argument, numbered as `observe` numbers them."""
        place_of: dict[int, _Place] = {
            id(tensor): ("w", self._weights.of[name]) for name, tensor in module_tensors.items()
        }
        for source in node.all_input_nodes:
            leaves = pytree.tree_leaves(self._captured.values.get(source))
            places = pytree.tree_leaves(self._places.get(source), is_leaf=_is_place)
            for leaf, place in zip(leaves, places, strict=False):
                if isinstance(leaf, torch.Tensor):
                    place_of[id(leaf)] = place
        return [place_of[id(tensor)] for tensor in distinct_tensors((module_tensors, args, kwargs))]

    def _output_places(
        self, node: torch.fx.Node, value: Any, effect: Effect, places: list[_Place]
    ) -> tuple[Any, list[int]]:
        """Places for the node's result, and the values that it makes."""
        made: dict[int, int] = {}
        leaves, spec = pytree.tree_flatten(value)
        outputs = iter(effect.outputs)
        result: list[Any] = []
        for leaf in leaves:
            output = next(outputs, None) if isinstance(leaf, torch.Tensor) else None
            if output is None:
                result.append(None)
            elif isinstance(output, Alias):
                result.append(places[output.argument])
            else:
                if output.slot not in made:
                    made[output.slot] = self._new_value(node, output.bytes, Role.ACTIVATION)
                result.append(("v", made[output.slot]))
        return pytree.tree_unflatten(result, spec), list(made.values())

    def _weight_nodes(self, state: dict[int, int]) -> dict[str, int]:
        """{node: weight}, state inputs included; ``state`` maps their values to weights."""
        found = {}
        for node, places in self._places.items():
            if node.op in ("placeholder", "get_attr"):
                for kind, number in _leaf_places(places):
                    if kind == "w":
                        found[node.name] = number
                    elif number in state:
                        found[node.name] = state[number]
        return found

    def _with_state(self) -> Facts:
        """Inputs that the graph writes become weights: they are resident wherever they are touched."""
        written = {n for step in self._steps for n in step.writes if self._values[n].role is Role.INPUT}
        sizes, names = list(self._weights.bytes), list(self._weights.names)
        weight_of: dict[int, int] = {}
        for number in sorted(written):
            weight_of[number] = len(sizes)
            sizes.append(self._values[number].bytes)
            names.append(self._values[number].name)
        kept = [n for n in range(len(self._values)) if n not in written]
        renumbered = {old: new for new, old in enumerate(kept)}
        for step in self._steps:
            for number in step.values:
                if number in written:
                    step.weights[weight_of[number]] = sizes[weight_of[number]]
            step.weight_writes |= {weight_of[n] for n in step.writes if n in written}
            step.writes = frozenset(renumbered[n] for n in step.writes if n not in written)
            step.values = tuple(renumbered[n] for n in step.values if n not in written)
        writes = {n for step in self._steps for n in step.weight_writes}
        return Facts(
            steps=self._steps,
            values=[self._values[n] for n in kept],
            weight_bytes=sizes,
            weight_names=names,
            weight_of=self._weight_nodes(weight_of),
            state=frozenset(writes - self._weights.parameters),
            symbols=self.symbols,
        )


def gather_facts(captured: Captured) -> Facts:
    """The facts of a captured graph; one run on fake tensors for each distinct (operator, argument shapes)."""
    return _Reader(captured).read()


def _is_place(leaf: Any) -> bool:
    return isinstance(leaf, tuple) and len(leaf) == 2 and leaf[0] in ("v", "w")


def _leaf_places(places: Any) -> Iterator[_Place]:
    for leaf in pytree.tree_leaves(places, is_leaf=_is_place):
        if leaf is not None:
            yield leaf


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _sized(values: Any) -> Iterator[Any]:
    for value in values:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, (torch.Tensor, torch.SymInt)):
                yield leaf


def _works_in_place(node: torch.fx.Node) -> bool:
    """Whether an operator writes its first argument, as ``relu_``, ``setitem`` and schemas with ``Tensor(a!)`` say."""
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = _target_name(node)
    return name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def _target_name(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
