"""Run a captured graph once on fake tensors that share memory as the real ones do, and note what each node touches.

Before (``relu_(linear(x, w)) + x``)::

    x, w = placeholders;  linear = F.linear(x, w);  relu_ = linear.relu_();  add = relu_ + x

After::

    memories: x (input), w (weight), linear, add
    runs:     linear {x, w, linear};  relu_ {linear}, writes it;  add {linear, x, add}
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError, UnreadableError

from ..capture.autocast_regions import Regions, under_autocast
from ..capture.capture_model import collector_at_rest
from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import dummy_input_for, leaves_of, new_fake_mode, no_new_guards, shape_env_of
from ..capture.graph_symbols import known_at_start, symbols_of
from ..capture.metadata_changes import may_change_metadata
from ..capture.module_members import all_tensors
from ..capture.symbolic_sizes import Size, add_up, smallest, to_expr
from ..capture.tensor_storage import bytes_of, check_readable, named, storage_key
from ..capture.tensor_subclasses import plain_tensors
from ..capture.user_names import module_path
from ..footprint.assumed_effects import assumed_name, works_in_place
from ..footprint.effect_cache import Effects
from ..footprint.higher_order_writes import written_operands
from ..footprint.op_effects import Effect, Fresh, distinct_tensors
from .alike_calls import Call, Calls, PlainCall, has_dummy_input
from .free import find_free
from .memories import MADE, WEIGHT, Memory, input_memories, weight_memories
from .recorder import Recorder, metadata_of, see
from .runs import Held, Reading, Run, held_in, is_held, tensors_in


@collector_at_rest()
def read_graph(captured: CapturedGraph) -> Reading:
    """Return what a captured graph does to memory; of calls that are alike, the first runs on fake tensors.

    Raises:
        UnreadableError: a node cannot be read; it is named.
    """
    return _Reader(captured).read()


class _Reader:
    def __init__(self, captured: CapturedGraph) -> None:
        check_readable(captured.values, captured.weights)
        self._captured, self._graph = captured, captured.gm.graph
        self._modules = dict(captured.gm.named_modules())
        self._shape_env = shape_env_of(leaf for value in captured.values.values() for leaf in leaves_of(value))
        self._mode = new_fake_mode(self._shape_env)
        self._symbols = symbols_of(captured)
        self._operators = Effects(self._modules, self._mode, self._symbols, see)
        tensors = dict(captured.weights.items())
        own: dict[tuple[str, str], torch.Tensor] = {}
        for node in self._graph.nodes:
            if node.op == "call_module":
                own |= {(str(node.target), name): tensor for name, tensor in self._own_tensors(node)}
        self._memories, weights = weight_memories({**tensors, **own})
        self._weight_of = {node: weights[node] for node in tensors}
        self._modules_hold = {key: Held(weights[key], like=tensor) for key, tensor in own.items()}
        self._input_of = input_memories(captured, self._weight_of, self._memories)
        self._memory_at: dict[Any, int] = {}
        self._dummy_inputs: list[torch.Tensor] = []  # a key of memory is good while its tensor lives
        self._env: dict[torch.fx.Node, Any] = {}
        self._runs: dict[torch.fx.Node, Run] = {}
        self._regions = Regions()
        self._calls = Calls(self._env, captured.values)
        self._plain_calls: dict[Hashable, PlainCall] = {}

    def _own_tensors(self, node: torch.fx.Node) -> Iterable[tuple[str, torch.Tensor]]:
        return all_tensors(self._modules[str(node.target)]).items()

    def _dummy_input(self, leaf: torch.Tensor) -> torch.Tensor | None:
        """A tensor of this run like another, in memory of its own; None where a plain one cannot stand for it."""
        if not has_dummy_input(leaf):
            return None
        with no_new_guards(self._shape_env), torch.no_grad(), self._mode:
            return dummy_input_for(leaf)

    def _keep(self, held: Held) -> Held:
        if held.tensor is not None:
            self._dummy_inputs.append(held.tensor)
            for plain in plain_tensors(held.tensor):
                self._memory_at[storage_key(plain)] = held.memory
        return held

    def _tensor(self, held: Held) -> torch.Tensor | None:
        """Return the dummy input of a tensor, which is made now if nothing has asked for it."""
        if held.tensor is None and held.like is not None:
            held.tensor, held.like = self._dummy_input(held.like), None
            self._keep(held)
        return held.tensor

    def read(self) -> Reading:
        for node in self._graph.nodes:
            self._try_to_read(node)
        rigid = {w for run in self._runs.values() for w in run.reshapes if self._memories[w].kind == WEIGHT}
        for run in self._runs.values():
            for weight in run.seen & rigid:
                run.touches.setdefault(weight, 0)
        known = known_at_start(self._captured)
        free = find_free(self._captured, self._runs, rigid, known)
        runs = [run for node, run in self._runs.items() if node not in free]
        for at, run in enumerate(runs):
            for number in run.writes:
                self._memories[number].is_written = True
            for number in run.touches:
                if self._memories[number].maker is run.node:
                    self._memories[number].made_at = at
        holds = {}
        for node, value in self._env.items():
            found = dict.fromkeys(h.memory for h in held_in(value) if self._memories[h.memory].is_activation)
            if found:
                holds[node.name] = tuple(found)
        return Reading(self._captured, runs, self._memories, holds, self._symbols, known)

    def _try_to_read(self, node: torch.fx.Node) -> None:
        try:
            self._read(node)
        except PartitionError:
            raise
        except Exception as error:
            raise UnreadableError(f"{named(node)} cannot be read: {type(error).__name__}: {error}") from error

    def _read(self, node: torch.fx.Node) -> None:
        value = self._captured.values.get(node)
        if node in self._weight_of:
            self._env[node] = Held(self._weight_of[node], like=self._captured.weights[node])
        elif node.op == "get_attr":
            self._env[node] = value
        elif node.op == "placeholder":
            self._env[node] = pytree.tree_map(self._input, value)
        elif node.op == "output":
            for held in self._given(node):
                self._memories[held.memory].is_returned = True
        else:
            self._runs[node] = self._call(node, value)

    def _input(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return Held(self._input_of[id(leaf)], like=leaf)

    def _given(self, node: torch.fx.Node) -> list[Held]:
        return [held for source in node.all_input_nodes for held in held_in(self._env.get(source))]

    # ---- calls

    def _call(self, node: torch.fx.Node, value: Any) -> Run:
        run = Run(node, module_path(node))
        if node.target is operator.getitem and self._pick(node, run):
            return run
        given = self._given(node)
        for held in given:
            self._note(held, run)
        self._env[node] = value
        self._regions.pass_node(node)
        if self._operators.enter_or_exit(node):
            return run  # a mode for later nodes, which touches no memory
        if given or tensors_in(value) or node.op == "call_module":
            self._apply(node, value, run)
            weights = 0
            results = held_in(self._env[node])
            for held in results:
                if self._memories[held.memory].kind == WEIGHT:
                    weights += 1
                else:
                    run.touches[held.memory] = self._memories[held.memory].bytes
            if results and weights == len(results):
                touched = {*run.touches, *run.writes}
                run.shows_weights = all(self._memories[number].kind != WEIGHT for number in touched)
        return run

    def _note(self, held: Held, run: Run) -> None:
        """Note that a run is given a tensor: of a weight, what it reads is told later."""
        memory = self._memories[held.memory]
        if memory.kind == WEIGHT:
            run.seen.add(held.memory)
        else:
            run.touches[held.memory] = memory.bytes

    def _pick(self, node: torch.fx.Node, run: Run) -> bool:
        """Take a tensor out of a container: it is where the container's own is."""
        source, key = node.args
        if not isinstance(source, torch.fx.Node) or isinstance(self._captured.values.get(source), torch.Tensor):
            return False
        container = self._env.get(source)
        try:
            found = self._captured.values.get(node) if container is None else container[key]
        except (TypeError, KeyError, IndexError):
            return False
        self._env[node] = found
        for held in held_in(found):
            self._note(held, run)
        run.picks = True
        return True

    def _apply(self, node: torch.fx.Node, value: Any, run: Run) -> None:
        call = self._calls.of(node, tuple(enter.args for enter in self._regions.open))
        known = None if call is None else self._plain_calls.get(call.key)
        if call is None or known is None or not self._repeat(node, value, run, call, known):
            self._look(node, value, run, call)

    def _repeat(self, node: torch.fx.Node, value: Any, run: Run, call: Call, known: PlainCall) -> bool:
        """Note what is known of a call without a run; False where it has another number of results."""
        if not self._place_like(node, value, known.results):
            return False
        run.draws, run.workspace, run.scratch = known.draws, known.workspace, known.scratch
        run.unknown = known.effect.unknown
        if run.seen:
            self._note_reads(call.operands, known.effect, run)
        return True

    def _look(self, node: torch.fx.Node, value: Any, run: Run, call: Call | None) -> None:
        """Look at a call that is alike none before it; where it is plain, keep what is found."""
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._captured.values.get(n))
        own = dict(self._own_tensors(node)) if node.op == "call_module" else {}
        module_tensors = {f"{node.target}.{name}": tensor for name, tensor in own.items()}
        seen = self._operators.of(node, args, kwargs, module_tensors)
        if seen is None or len(seen.effect.outputs) != len(tensors_in(value)):
            self._assume(node, value, run, [self._modules_hold[str(node.target), name].memory for name in own])
            return
        effect = seen.effect
        results: Size = 0
        for size in {output.slot: output.bytes for output in effect.outputs if isinstance(output, Fresh)}.values():
            results = results + size
        scratch = effect.scratch.less(results)
        workspace, varying = scratch.by_rules(), scratch if scratch.varies else None
        if call is not None and seen.results is not None and all(map(has_dummy_input, tensors_in(value))):
            known = PlainCall(seen.draws, seen.results, workspace, varying, effect)
            if self._repeat(node, value, run, call, known):
                self._plain_calls[call.key] = known
                return
        run.workspace, run.scratch, run.unknown = workspace, varying, effect.unknown
        self._run(node, value, run)
        if run.seen or module_tensors:
            holder = self._holders(node, module_tensors)
            operands = [holder[id(tensor)] for tensor in distinct_tensors((module_tensors, args, kwargs))]
            self._note_reads(operands, effect, run)

    def _run(self, node: torch.fx.Node, value: Any, run: Run) -> None:
        """Run a node on dummy inputs, and note what it writes and where its results are."""
        given = [*self._given(node), *self._module_holds(node)]
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._tensors_in(self._env[n]))
        before = [(held, metadata_of(tensor)) for held in given if (tensor := self._tensor(held)) is not None]
        with contextlib.ExitStack() as stack:
            stack.enter_context(no_new_guards(self._shape_env))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._mode)
            stack.enter_context(under_autocast(self._regions.open))
            recorder = stack.enter_context(Recorder())
            result = self._callable(node)(*args, **kwargs)
        run.draws = recorder.draws
        written = {self._memory_at[key] for key in recorder.written if key in self._memory_at}
        run.reshapes = {self._memory_at[key] for key in recorder.reshaped if key in self._memory_at}
        for held, was in before:
            assert held.tensor is not None
            if metadata_of(held.tensor) != was:
                run.reshapes.add(held.memory)
        run.writes = written | run.reshapes
        for number in written:
            run.touches[number] = self._memories[number].bytes
        if run.writes:
            self._calls.forget(held.tensor for held, _ in before if held.tensor is not None)
            for held, _ in before:
                self._note_resize(held)
        self._place(node, value, result, given)

    def _place_like(self, node: torch.fx.Node, value: Any, sizes: Sequence[Size]) -> bool:
        """Note that each tensor of a result is in memory of its own; False if there are more or fewer."""
        if isinstance(value, torch.Tensor) and len(sizes) == 1:
            self._env[node] = Held(self._make(node, sizes[0]), like=value)
            return True
        leaves, structure = pytree.tree_flatten(value)
        tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if len(tensors) != len(sizes):
            return False
        for place, size in zip(tensors, sizes, strict=True):
            leaves[place] = Held(self._make(node, size), like=leaves[place])
        self._env[node] = pytree.tree_unflatten(leaves, structure)
        return True

    def _tensors_in(self, value: Any) -> Any:
        return pytree.tree_map_only(Held, self._tensor, value, is_leaf=is_held)

    def _note_resize(self, held: Held) -> None:
        assert held.tensor is not None
        memory = self._memories[held.memory]
        first = plain_tensors(held.tensor)[0]
        size = to_expr(first.untyped_storage().nbytes())
        if first is held.tensor and memory.kind == MADE and self._memory_at.get(storage_key(first)) == held.memory:
            memory.bytes = size

    def _callable(self, node: torch.fx.Node) -> Callable[..., Any]:
        if node.op == "call_function":
            return node.target  # type: ignore[return-value]
        if node.op == "call_method":
            return lambda own, *args, **kwargs: getattr(own, str(node.target))(*args, **kwargs)
        module = self._modules[str(node.target)]
        names = [name for name, _ in self._own_tensors(node)]
        held = {name: self._tensor(self._modules_hold[str(node.target), name]) for name in names}
        tensors = {name: tensor for name, tensor in held.items() if tensor is not None}
        return lambda *args, **kwargs: torch.func.functional_call(module, tensors, args, kwargs)

    def _module_holds(self, node: torch.fx.Node) -> list[Held]:
        if node.op != "call_module":
            return []
        return [self._modules_hold[str(node.target), name] for name, _ in self._own_tensors(node)]

    def _place(self, node: torch.fx.Node, value: Any, result: Any, given: list[Held]) -> None:
        """Note where the tensors of a result are; their layouts are those that the tracer has seen."""
        leaves, structure = pytree.tree_flatten(value)
        results = iter(tensors_in(result))
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor):
                continue
            found = next(results)
            inner = plain_tensors(found)
            number = self._memory_at.get(storage_key(inner[0]))
            shown: Size | None = None
            if number is None:
                number = self._make(node, _storage_bytes(inner))
            elif self._memories[number].kind == WEIGHT:
                shown = self._shown(number, leaf, given)
            held = self._keep(Held(number, shown, tensor=found))
            if metadata_of(found) != metadata_of(leaf) or found.dtype != leaf.dtype:
                held = Held(number, shown, like=leaf)
            leaves[place] = held
        self._env[node] = pytree.tree_unflatten(leaves, structure)

    def _shown(self, number: int, leaf: torch.Tensor, given: list[Held]) -> Size | None:
        """What a view shows of a weight: as much as its source where it is as large, else its own bytes."""
        size, whole = bytes_of(leaf), self._memories[number].bytes
        for held in given:
            if held.memory == number and held.tensor is not None and bytes_of(held.tensor) == size:
                return held.shown
        shown = smallest(whole, size)
        return None if shown == whole else shown

    def _make(self, node: torch.fx.Node, size: Size) -> int:
        name = self._captured.names.get(node, node.name)
        self._memories.append(Memory(name, size, MADE, maker=node))
        return len(self._memories) - 1

    def _holders(self, node: torch.fx.Node, module_tensors: dict[str, torch.Tensor]) -> dict[int, Held]:
        """Return where the values that a node takes are, by their ids."""
        own = zip(module_tensors.values(), self._module_holds(node), strict=True)
        found = {id(tensor): held for tensor, held in own}
        for source in node.all_input_nodes:
            pairs = zip(tensors_in(self._captured.values.get(source)), held_in(self._env[source]), strict=True)
            found |= {id(leaf): held for leaf, held in pairs}
        return found

    def _note_reads(self, operands: Sequence[Held], effect: Effect, run: Run) -> None:
        """Count the bytes that an operator reads of weights: of each operand all that it shows, or gathered rows.

        Args:
            operands: in the order in which ``effect`` counts them.
        """
        sizes: list[tuple[int, Size | None]] = [(i, None) for i in effect.reads]
        sizes += effect.gathers
        for number, rows in sizes:
            held = operands[number]
            memory = self._memories[held.memory]
            if memory.kind != WEIGHT:
                continue
            shown = held.shown if rows is None else rows if held.shown is None else smallest(held.shown, rows)
            before = run.touches.get(held.memory, 0)
            run.touches[held.memory] = memory.bytes if shown is None or before == memory.bytes else before + shown

    def _assume(self, node: torch.fx.Node, value: Any, run: Run, own: list[int]) -> None:
        """Assume of an operator that does not run on fakes that it reads all, and writes what its name says."""
        run.unknown = (assumed_name(node, self._captured),)
        for number in [*run.seen, *own]:
            run.touches[number] = self._memories[number].bytes
        first = next(iter(held_in(self._env.get(next(iter(node.all_input_nodes), node)))), None)
        if first is not None and works_in_place(node):
            run.writes = {first.memory}
            run.reshapes = {first.memory} if may_change_metadata(node) else set()

            def same(leaf: Any) -> Any:
                return self._like(leaf, first.memory, first.shown) if isinstance(leaf, torch.Tensor) else leaf

            self._env[node] = pytree.tree_map(same, value)
            return
        shared: dict[Any, int] = {}
        for source in node.all_input_nodes:
            pairs = zip(tensors_in(self._captured.values.get(source)), held_in(self._env[source]), strict=False)
            shared |= {storage_key(leaf): held.memory for leaf, held in pairs}

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            key = storage_key(leaf)
            if key not in shared:
                shared[key] = self._make(node, bytes_of(leaf))
            return self._like(leaf, shared[key], None)

        self._env[node] = pytree.tree_map(place, value)
        for source in written_operands(node, self._captured.gm, self._mode):
            run.writes |= {held.memory for held in held_in(self._env.get(source))}

    def _like(self, leaf: torch.Tensor, memory: int, shown: Size | None) -> Held:
        return Held(memory, shown, like=leaf)


def _storage_bytes(tensors: list[torch.Tensor]) -> Size:
    return add_up({storage_key(t): to_expr(t.untyped_storage().nbytes()) for t in tensors}.values())
