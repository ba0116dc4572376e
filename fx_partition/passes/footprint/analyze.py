"""Walk a graph once and find the memory that each node uses; `graph_memory` defines the terms."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError, UnreadableError

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import new_fake_mode, shape_env_of
from ..capture.graph_symbols import known_at_start, symbols_of
from ..capture.metadata_changes import may_change_metadata
from ..capture.module_members import all_tensors
from ..capture.symbolic_sizes import Size, smallest
from ..capture.tensor_storage import bytes_of, check_readable, named, storage_key
from ..capture.user_names import module_path
from ..capture.whole_regions import in_other_grad_mode, inside_whole_regions
from .assumed_effects import assumed_name, given_storages, works_in_place
from .effect_cache import Effects
from .free_scalars import is_free_scalar
from .graph_memory import ActivationStorage, GraphMemory, NodeMemory, Role
from .higher_order_writes import written_operands
from .op_effects import Alias, Effect, distinct_tensors, observe
from .shared_inputs import InputGroup, input_groups
from .state_inputs import with_state
from .storage_refs import Place, by_kind, leaf_places, seen_through, tensor_places, values_at
from .weight_storage import Weights, find_weights


class _Reader:
    """One walk over a graph.

    Args:
        rigid: the weights that have a tensor whose metadata the graph changes; views of these are never free.
    """

    def __init__(self, captured: CapturedGraph, rigid: frozenset[int] = frozenset()) -> None:
        check_readable(captured.values, captured.weights)
        self._captured, self._rigid = captured, rigid
        self._graph = captured.gm.graph
        self._modules = dict(captured.gm.named_modules())
        shape_env = shape_env_of(pytree.tree_leaves(list(captured.values.values())))
        self.symbols = symbols_of(captured)
        self._at_start = known_at_start(captured)
        self._mode = new_fake_mode(shape_env)
        self._effects = Effects(self._modules, self._mode, self.symbols, observe)
        tensors = {node.name: (captured.names[node], tensor) for node, tensor in captured.weights.items()}
        for node in self._graph.nodes:
            if node.op == "call_module":
                tensors |= {name: (name, tensor) for name, tensor in self._module_tensors(node).items()}
        self._weights: Weights = find_weights(tensors)
        self._places: dict[torch.fx.Node, Any] = {}  # like the node's value, with places for tensors
        self._values: list[ActivationStorage] = []
        self._steps: list[NodeMemory] = []
        self._free: set[torch.fx.Node] = set()
        self._inputs = input_groups(captured, self._weights.of)
        self._input_places: dict[InputGroup, Place] = {}
        self._kept_in_regions = {**inside_whole_regions(self._graph), **in_other_grad_mode(self._graph)}

    def _module_tensors(self, node: torch.fx.Node) -> dict[str, torch.Tensor]:
        tensors = all_tensors(self._modules[str(node.target)])
        return {f"{node.target}.{name}": tensor for name, tensor in tensors.items()}

    def read(self) -> GraphMemory:
        for node in self._graph.nodes:
            self._read_node(node)
        return self._memory()

    def _read_node(self, node: torch.fx.Node) -> None:
        try:
            if node in self._captured.weights:
                self._free.add(node)
                self._places[node] = Place("w", self._weights.of[node.name])
                return
            match node.op:
                case "placeholder":
                    self._free.add(node)
                    self._places[node] = pytree.tree_map(self._input_place, self._captured.values.get(node))
                case "get_attr":
                    self._free.add(node)
                case "output":
                    self._read_output(node)
                case _:
                    self._read_call(node)
        except PartitionError:
            raise
        except Exception as error:
            raise UnreadableError(f"{named(node)} cannot be read: {type(error).__name__}: {error}") from error

    def _input_place(self, leaf: Any) -> Place | None:
        if not isinstance(leaf, torch.Tensor):
            return None
        group = self._inputs[id(leaf)]
        if group.weight is not None:
            return Place("w", group.weight)
        if group not in self._input_places:
            self._input_places[group] = Place("v", self._new_value(group.first, group.bytes, Role.INPUT))
        return self._input_places[group]

    def _new_places(self, node: torch.fx.Node, value: Any, known: dict[Hashable, Place]) -> Any:
        """Return places for the results of an operator that does not run on fakes: tensors of one memory share one.

        Args:
            known: the places of memory that is known already; new ones are added.
        """

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return None
            key = storage_key(leaf)
            if key not in known:
                known[key] = Place("v", self._new_value(node, bytes_of(leaf), Role.ACTIVATION))
            return known[key]

        return pytree.tree_map(place, value)

    def _new_value(self, node: torch.fx.Node, size: Size, role: Role) -> int:
        made_at = -1 if role is Role.INPUT else len(self._steps)
        name = self._captured.names.get(node, node.name)
        self._values.append(ActivationStorage(name, size, role, made_at))
        return len(self._values) - 1

    def _read_output(self, node: torch.fx.Node) -> None:
        for source in node.all_input_nodes:
            for place in leaf_places(self._places.get(source)):
                if place.kind == "v":
                    self._values[place.number].returned = True

    # ---- calls

    def _read_call(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem and self._pick(node):
            return
        if node not in self._kept_in_regions and is_free_scalar(node, self._captured, self._free, self._at_start):
            self._free.add(node)
            return
        step = NodeMemory(node.name, module_path(node))
        touched: dict[int, None] = {}
        reads: dict[int, None] = {}
        for source in node.all_input_nodes:
            for place in leaf_places(self._places.get(source)):
                (touched if place.kind == "v" else reads)[place.number] = None
        step.given = tuple(reads)
        value = self._captured.values.get(node)
        region = self._effects.enter_or_exit(node)
        if not region and (touched or reads or _tensors(value) or node.op == "call_module"):
            self._apply(node, value, step, touched, reads)
            self._touch_rigid(step, reads)
            if self._is_free_view(node, step):
                self._free.add(node)
                return
        step.values = tuple(touched)
        self._steps.append(step)

    def _pick(self, node: torch.fx.Node) -> bool:
        """Read a ``getitem`` of a tuple, whose place is that of the tuple's element; return whether it is one."""
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
        step = NodeMemory(node.name, module_path(node))
        step.values = tuple(values_at(self._places[node]))
        step.given = tuple(dict.fromkeys(p.number for p in leaf_places(self._places[node]) if p.kind == "w"))
        self._touch_rigid(step, step.given)
        self._steps.append(step)
        return True

    def _is_free_view(self, node: torch.fx.Node, step: NodeMemory) -> bool:
        places = list(leaf_places(self._places.get(node)))
        return (
            bool(places)
            and node not in self._kept_in_regions
            and all(place.kind == "w" for place in places)
            and not step.weights
            and not step.weight_writes
            and all(source in self._free for source in node.all_input_nodes)
        )

    def _apply(
        self, node: torch.fx.Node, value: Any, step: NodeMemory, touched: dict[int, None], reads: dict[int, None]
    ) -> None:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._captured.values.get(n))
        module_tensors = self._module_tensors(node) if node.op == "call_module" else {}
        effect = self._effects.of(node, args, kwargs, module_tensors)
        if effect is None or len(effect.outputs) != len(_tensors(value)):  # this run was not like the trace
            self._assume(node, value, step, [*reads, *(self._weights.of[name] for name in module_tensors)])
            touched |= values_at(self._places[node])
            return
        arguments = distinct_tensors((module_tensors, args, kwargs))
        given = {id(tensor): Place("w", self._weights.of[name]) for name, tensor in module_tensors.items()}
        for source in node.all_input_nodes:
            given |= tensor_places(self._captured.values.get(source), self._places.get(source))
        places = [given[id(tensor)] for tensor in arguments]
        self._places[node], made = self._output_places(node, value, effect, arguments, places)
        for number in effect.writes:
            self._touch_weight(step, places[number]._replace(shown=None))
        for number in effect.reads - effect.writes:
            self._touch_weight(step, places[number])
        for number, size in effect.gathers:
            shown = places[number].shown
            rows = size if shown is None else smallest(shown, size)
            self._touch_weight(step, places[number]._replace(shown=rows))
        written = [places[number] for number in (*effect.writes, *effect.reshapes)]
        step.writes, step.weight_writes = by_kind(written)
        step.reshapes, step.weight_reshapes = by_kind([places[number] for number in effect.reshapes])
        for number, size in effect.resized:
            if places[number].kind == "v":
                self._values[places[number].number].bytes = size
        step.unknown, step.draws = effect.unknown, effect.draws
        own: Size = 0
        for number in made:
            own = own + self._values[number].bytes
        scratch = effect.scratch.less(own)
        step.workspace = scratch.by_rules()
        step.scratch = scratch if scratch.varies else None
        touched |= values_at(self._places[node])
        touched |= dict.fromkeys(made)

    def _assume(self, node: torch.fx.Node, value: Any, step: NodeMemory, reads: list[int]) -> None:
        """Read an operator that does not run on fakes: it reads all its arguments, and writes by its name or schema."""
        step.unknown = (assumed_name(node, self._captured),)
        step.weights = {number: self._weights.bytes[number] for number in reads}
        own = next((p for source in node.all_input_nodes[:1] for p in leaf_places(self._places.get(source))), None)
        if own is None or not works_in_place(node):
            self._places[node] = self._new_places(node, value, given_storages(node, self._captured, self._places))
            written = written_operands(node, self._captured.gm, self._mode)
            step.writes, step.weight_writes = by_kind(p for n in written for p in leaf_places(self._places.get(n)))
            return
        self._places[node] = pytree.tree_map(lambda leaf: own if isinstance(leaf, torch.Tensor) else None, value)
        step.writes, step.weight_writes = by_kind([own])
        if may_change_metadata(node):
            step.reshapes, step.weight_reshapes = by_kind([own])

    def _touch_rigid(self, step: NodeMemory, weights: Iterable[int]) -> None:
        """Let a step touch 0 bytes of rigid weights: a view reads nothing, but must not move past the change."""
        for number in weights:
            if number in self._rigid:
                step.weights.setdefault(number, 0)

    def _touch_weight(self, step: NodeMemory, place: Place) -> None:
        """Add the bytes that ``place`` shows of its weight to those that a step touches."""
        if place.kind != "w":
            return
        whole = self._weights.bytes[place.number]
        if place.shown is None or step.weights.get(place.number) == whole:
            step.weights[place.number] = whole
        else:
            step.weights[place.number] = step.weights.get(place.number, 0) + place.shown

    def _output_places(
        self,
        node: torch.fx.Node,
        value: Any,
        effect: Effect,
        arguments: list[torch.Tensor],
        places: list[Place],
    ) -> tuple[Any, list[int]]:
        """Return places for the node's result, and the values that it makes."""
        made: dict[int, int] = {}
        leaves, spec = pytree.tree_flatten(value)
        outputs = iter(effect.outputs)
        result: list[Any] = []
        for leaf in leaves:
            output = next(outputs, None) if isinstance(leaf, torch.Tensor) else None
            if output is None:
                result.append(None)
            elif isinstance(output, Alias):
                place, source = places[output.argument], arguments[output.argument]
                whole = self._weights.bytes[place.number] if place.kind == "w" else 0
                result.append(seen_through(place, source, leaf, whole))
            else:
                if output.slot not in made:
                    made[output.slot] = self._new_value(node, output.bytes, Role.ACTIVATION)
                result.append(Place("v", made[output.slot]))
        return pytree.tree_unflatten(result, spec), list(made.values())

    def _memory(self) -> GraphMemory:
        weight_of: dict[str, int] = {}
        inputs: dict[str, frozenset[int]] = {}
        for node, places in self._places.items():
            if node.op == "placeholder" or node in self._captured.weights:
                weight_of.update((node.name, place.number) for place in leaf_places(places) if place.kind == "w")
                inputs[node.name] = frozenset(values_at(places))
        memory = GraphMemory(
            steps=self._steps,
            values=self._values,
            weight_bytes=self._weights.bytes,
            weight_names=self._weights.names,
            weight_of=weight_of,
            state=frozenset(),
            symbols=self.symbols,
            holds={
                node.name: tuple(found) for node, places in self._places.items() if (found := values_at(places))
            },
        )
        return with_state(memory, inputs, self._weights.parameters)


def analyze_memory(captured: CapturedGraph) -> GraphMemory:
    """Return the memory of a captured graph; one run on fake tensors for each distinct (operator, argument shapes)."""
    memory = _Reader(captured).read()
    # Which weights are rigid is known only after a walk, so a graph that has some is read again.
    rigid = frozenset(number for step in memory.steps for number in step.weight_reshapes)
    return _Reader(captured, rigid).read() if rigid else memory


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
