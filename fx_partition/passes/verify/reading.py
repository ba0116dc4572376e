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
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError, UnreadableError

from ..capture.autocast_regions import Regions, under_autocast
from ..capture.capture_model import collector_at_rest
from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import leaves_of, new_fake_mode, no_new_guards, shape_env_of
from ..capture.graph_symbols import known_at_start, symbols_of
from ..capture.metadata_changes import may_change_metadata
from ..capture.symbolic_sizes import Size, smallest
from ..capture.tensor_storage import check_readable, named
from ..capture.user_names import module_path
from ..footprint.assumed_effects import assumed_name, works_in_place
from ..footprint.effect_cache import Effects
from ..footprint.higher_order_writes import written_operands
from ..footprint.op_effects import Effect, Fresh, distinct_tensors
from .alike_calls import Call, Calls, PlainCall, has_dummy_input
from .called_modules import CalledModules
from .dummy_inputs import DummyInputs
from .free import find_free
from .memories import WEIGHT, input_memories, weight_memories
from .recorder import Recorder, metadata_of, see
from .runs import Held, Reading, Run, held_in, tensors_in


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
        self._modules = CalledModules(captured.gm)
        self._shape_env = shape_env_of(leaf for value in captured.values.values() for leaf in leaves_of(value))
        self._mode = new_fake_mode(self._shape_env)
        self._symbols = symbols_of(captured)
        self._operators = Effects(self._modules.by_path, self._mode, self._symbols, see)
        tensors: dict[Any, torch.Tensor] = {**captured.weights, **self._modules.tensors}
        self._memories, weights = weight_memories(tensors)
        self._weight_of = {node: weights[node] for node in captured.weights}
        self._modules.place(weights)
        self._input_of = input_memories(captured, self._weight_of, self._memories)
        self._dummies = DummyInputs(self._memories, captured.names, self._mode)
        self._env: dict[torch.fx.Node, Any] = {}
        self._runs: dict[torch.fx.Node, Run] = {}
        self._regions = Regions()
        self._calls = Calls(self._env, captured.values)
        self._plain_calls: dict[Hashable, PlainCall] = {}

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
        if len(tensors_in(value)) != len(known.results):
            return False
        self._env[node] = self._dummies.place_apart(node, value, known.results)
        run.draws, run.workspace, run.scratch = known.draws, known.workspace, known.scratch
        run.unknown = known.effect.unknown
        if run.seen:
            self._note_reads(call.operands, known.effect, run)
        return True

    def _look(self, node: torch.fx.Node, value: Any, run: Run, call: Call | None) -> None:
        """Look at a call that is alike none before it; where it is plain, keep what is found."""
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._captured.values.get(n))
        module_tensors = {f"{node.target}.{name}": tensor for name, tensor in self._modules.tensors_of(node).items()}
        seen = self._operators.of(node, args, kwargs, module_tensors)
        if seen is None or len(seen.effect.outputs) != len(tensors_in(value)):
            self._assume(node, value, run)
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
        given = [*self._given(node), *self._modules.held_by(node)]
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._dummies.in_place_of(self._env[n]))
        before = [(held, metadata_of(tensor)) for held in given if (tensor := self._dummies.of(held)) is not None]
        with contextlib.ExitStack() as stack:
            stack.enter_context(no_new_guards(self._shape_env))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._mode)
            stack.enter_context(under_autocast(self._regions.open))
            recorder = stack.enter_context(Recorder())
            result = self._modules.callable_of(node, self._dummies)(*args, **kwargs)
        run.draws = recorder.draws
        written = self._dummies.memories_at(recorder.written)
        run.reshapes = self._dummies.memories_at(recorder.reshaped)
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
                self._dummies.note_resize(held)
        self._env[node] = self._dummies.place(node, value, result, given)

    def _holders(self, node: torch.fx.Node, module_tensors: dict[str, torch.Tensor]) -> dict[int, Held]:
        """Return where the values that a node takes are, by their ids."""
        own = zip(module_tensors.values(), self._modules.held_by(node), strict=True)
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

    def _assume(self, node: torch.fx.Node, value: Any, run: Run) -> None:
        """Assume of an operator that does not run on fakes that it reads all, and writes what its name says."""
        run.unknown = (assumed_name(node, self._captured),)
        for number in [*run.seen, *(held.memory for held in self._modules.held_by(node))]:
            run.touches[number] = self._memories[number].bytes
        first = next(iter(held_in(self._env.get(next(iter(node.all_input_nodes), node)))), None)
        if first is not None and works_in_place(node):
            run.writes = {first.memory}
            run.reshapes = {first.memory} if may_change_metadata(node) else set()
            self._env[node] = self._dummies.place_in(first, value)
            return
        given: list[tuple[torch.Tensor, Held]] = []
        for source in node.all_input_nodes:
            given += zip(tensors_in(self._captured.values.get(source)), held_in(self._env[source]), strict=False)
        self._env[node] = self._dummies.place_as_traced(node, value, given)
        for source in written_operands(node, self._captured.gm, self._mode):
            run.writes |= {held.memory for held in held_in(self._env.get(source))}
