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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError, UnreadableError

from ..capture.autocast_regions import Regions, under_autocast
from ..capture.capture_model import collector_at_rest
from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import is_learned, is_wrapped, new_fake_mode, no_new_guards, shape_env_of, stand_in_for
from ..capture.graph_symbols import known_at_start, symbols_of
from ..capture.metadata_changes import may_change_metadata
from ..capture.module_members import all_tensors
from ..capture.symbolic_sizes import Size, smallest, to_expr
from ..capture.tensor_storage import bytes_of, check_readable, is_strided, named, storage_key
from ..capture.user_names import module_path
from ..footprint.assumed_effects import assumed_name, works_in_place
from ..footprint.effect_cache import Effects
from ..footprint.higher_order_writes import written_operands
from ..footprint.op_effects import Effect, Fresh, distinct_tensors, observe
from ..workspace.measured_scratch import Scratch
from .free import find_free
from .memories import MADE, WEIGHT, Memory, input_memories, weight_memories
from .recorder import Recorder
from .runs import Held, Reading, Run


@collector_at_rest()
def read_graph(captured: CapturedGraph) -> Reading:
    """Return what a captured graph does to memory; each node runs once on fake tensors.

    Raises:
        UnreadableError: a node cannot be read; it is named.
    """
    return _Reader(captured).read()


class _Reader:
    def __init__(self, captured: CapturedGraph) -> None:
        check_readable(captured.values, captured.weights)
        self._captured, self._graph = captured, captured.gm.graph
        self._modules = dict(captured.gm.named_modules())
        self._shape_env = shape_env_of(pytree.tree_leaves(list(captured.values.values())))
        self._mode = new_fake_mode(self._shape_env)
        self._symbols = symbols_of(captured)
        self._operators = Effects(self._modules, self._mode, self._symbols, observe)
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
        self._stand_ins: list[torch.Tensor] = []  # a key of memory is good while its tensor lives
        self._env: dict[torch.fx.Node, Any] = {}
        self._runs: dict[torch.fx.Node, Run] = {}
        self._regions = Regions()
        self._plain_calls: dict[Any, _PlainCall] = {}

    def _own_tensors(self, node: torch.fx.Node) -> Iterable[tuple[str, torch.Tensor]]:
        return all_tensors(self._modules[str(node.target)]).items()

    def _stand_in(self, leaf: torch.Tensor) -> torch.Tensor | None:
        """A tensor of this run like another, in memory of its own; None where a plain one cannot stand for it."""
        if not _has_stand_in(leaf):
            return None
        with no_new_guards(self._shape_env), torch.no_grad(), self._mode:
            return stand_in_for(leaf)

    def _keep(self, held: Held) -> Held:
        if held.tensor is not None:
            self._stand_ins.append(held.tensor)
            self._memory_at[storage_key(held.tensor)] = held.memory
        return held

    def _tensor(self, held: Held) -> torch.Tensor | None:
        """The stand-in of a tensor, which is made now if nothing has asked for it."""
        if held.tensor is None and held.like is not None:
            held.tensor, held.like = self._stand_in(held.like), None
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
            found = dict.fromkeys(h.memory for h in _leaves(value) if self._memories[h.memory].is_activation)
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
        if node.op == "get_attr" or (node.op == "placeholder" and node in self._weight_of):
            weight = self._captured.weights.get(node)
            held = None if weight is None else Held(self._weight_of[node], like=weight)
            self._env[node] = value if held is None else held
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
        return [held for source in node.all_input_nodes for held in _leaves(self._env.get(source))]

    # ---- calls

    def _call(self, node: torch.fx.Node, value: Any) -> Run:
        run = Run(node, module_path(node))
        given = self._given(node)
        if node.target is operator.getitem and self._pick(node, run):
            return run
        for held in given:
            if self._memories[held.memory].kind == WEIGHT:
                run.seen.add(held.memory)
            else:
                run.touches[held.memory] = self._memories[held.memory].bytes
        self._env[node] = value
        self._regions.pass_node(node)
        if self._operators.enter_or_exit(node):
            pass  # a mode for later nodes, which touches no memory
        elif given or _tensors(value) or node.op == "call_module":
            self._apply(node, value, run)
            for held in _leaves(self._env[node]):
                if self._memories[held.memory].kind != WEIGHT:
                    run.touches[held.memory] = self._memories[held.memory].bytes
            results = list(_leaves(self._env[node]))
            only_weights = bool(results) and all(self._memories[h.memory].kind == WEIGHT for h in results)
            reads = any(self._memories[number].kind == WEIGHT for number in {*run.touches, *run.writes})
            run.shows_weights = only_weights and not reads
        return run

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
        for held in _leaves(found):
            if self._memories[held.memory].kind == WEIGHT:
                run.seen.add(held.memory)
            else:
                run.touches[held.memory] = self._memories[held.memory].bytes
        run.picks = True
        return True


    def _apply(self, node: torch.fx.Node, value: Any, run: Run) -> None:
        alike = self._alike(node)
        plain = None if alike is None else self._plain_calls.get(alike)
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._captured.values.get(n))
        if plain is not None and self._place_like(node, value, plain.results):
            run.draws, run.workspace, run.scratch = plain.draws, plain.workspace, plain.scratch
            run.unknown = plain.effect.unknown
            self._note_reads(node, args, kwargs, {}, plain.effect, run)
            return
        own = dict(self._own_tensors(node)) if node.op == "call_module" else {}
        module_tensors = {f"{node.target}.{name}": tensor for name, tensor in own.items()}
        effect = self._operators.of(node, args, kwargs, module_tensors)
        if effect is None or len(effect.outputs) != len(_tensors(value)):
            self._assume(node, value, run, [self._modules_hold[str(node.target), name].memory for name in own])
            return
        made_before = len(self._memories)
        self._run(node, value, run)
        made = [memory.bytes for memory in self._memories[made_before:] if isinstance(memory.bytes, int)]
        self._note_reads(node, args, kwargs, module_tensors, effect, run)
        results: Size = 0
        for size in {output.slot: output.bytes for output in effect.outputs if isinstance(output, Fresh)}.values():
            results = results + size
        scratch = effect.scratch.less(results)
        run.workspace, run.scratch = scratch.by_rules(), scratch if scratch.varies else None
        run.unknown = effect.unknown
        is_plain = not run.writes and len(made) == len(effect.outputs) and all(map(_has_stand_in, _tensors(value)))
        if alike is not None and is_plain:
            self._plain_calls[alike] = _PlainCall(run.draws, made, run.workspace, run.scratch, effect)

    def _run(self, node: torch.fx.Node, value: Any, run: Run) -> None:
        """Run a node on stand-ins, and note what it writes and where its results are."""
        given = [*self._given(node), *self._module_holds(node)]
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._tensors_in(self._env[n]))
        before = [(held, _metadata(tensor)) for held in given if (tensor := self._tensor(held)) is not None]
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
            if _metadata(held.tensor) != was:
                run.reshapes.add(held.memory)
        run.writes = written | run.reshapes
        for number in written:
            run.touches[number] = self._memories[number].bytes
        for held, _ in before if run.writes else ():
            self._note_resize(held)
        self._place(node, value, result, given)

    def _place_like(self, node: torch.fx.Node, value: Any, sizes: list[int]) -> bool:
        """Note that each tensor of a result is in memory of its own; False if there are more or fewer."""
        leaves, structure = pytree.tree_flatten(value)
        tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if len(tensors) != len(sizes):
            return False
        for place, size in zip(tensors, sizes, strict=True):
            leaves[place] = Held(self._make(node, size), like=leaves[place])
        self._env[node] = pytree.tree_unflatten(leaves, structure)
        return True

    def _alike(self, node: torch.fx.Node) -> Any:
        """What calls have in common that do the same to stand-ins; None where that may depend on more."""
        if node.op == "call_module":
            return None
        leaves, structure = pytree.tree_flatten(
            torch.fx.map_arg((node.args, node.kwargs), lambda n: self._env.get(n)), is_leaf=_is_held
        )
        number: dict[int, tuple[int, Held]] = {}
        parts: list[Any] = [node.op, node.target, structure, tuple(enter.args for enter in self._regions.open)]
        for leaf in leaves:
            if isinstance(leaf, Held):
                place, first = number.setdefault(leaf.memory, (len(number), leaf))
                layout = _layout(leaf)
                if first is not leaf or layout is None:
                    return None
                parts.append((place, layout))
            elif isinstance(leaf, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
                return None
            else:
                parts.append((type(leaf), leaf))
        key = tuple(parts)
        try:
            hash(key)
        except TypeError:  # slices do not hash
            return None
        return key

    def _tensors_in(self, value: Any) -> Any:
        return pytree.tree_map_only(Held, self._tensor, value, is_leaf=_is_held)

    def _note_resize(self, held: Held) -> None:
        assert held.tensor is not None
        memory = self._memories[held.memory]
        size = to_expr(held.tensor.untyped_storage().nbytes())
        if memory.kind == MADE and self._memory_at.get(storage_key(held.tensor)) == held.memory:
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
        results = iter(_tensors(result))
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor):
                continue
            found = next(results)
            number = self._memory_at.get(storage_key(found))
            shown: Size | None = None
            if number is None:
                number = self._make(node, to_expr(found.untyped_storage().nbytes()))
            elif self._memories[number].kind == WEIGHT:
                shown = self._shown(number, leaf, given)
            held = self._keep(Held(number, shown, tensor=found))
            if _metadata(found) != _metadata(leaf) or found.dtype != leaf.dtype:
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

    def _note_reads(
        self,
        node: torch.fx.Node,
        args: Any,
        kwargs: Any,
        module_tensors: dict[str, torch.Tensor],
        effect: Effect,
        run: Run,
    ) -> None:
        """Count the bytes that an operator reads of weights: of each operand all that it shows, or gathered rows."""
        if not run.seen and not module_tensors:
            return
        own = zip(module_tensors.values(), self._module_holds(node), strict=True)
        holder = {id(tensor): held for tensor, held in own}
        for source in node.all_input_nodes:
            pairs = zip(_tensors(self._captured.values.get(source)), _leaves(self._env[source]), strict=True)
            holder |= {id(leaf): held for leaf, held in pairs}
        operands = distinct_tensors((module_tensors, args, kwargs))
        sizes: list[tuple[int, Size | None]] = [(i, None) for i in effect.reads]
        sizes += effect.gathers
        for number, rows in sizes:
            held = holder[id(operands[number])]
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
        first = next(iter(_leaves(self._env.get(next(iter(node.all_input_nodes), node)))), None)
        if first is not None and works_in_place(node):
            run.writes = {first.memory}
            run.reshapes = {first.memory} if may_change_metadata(node) else set()

            def same(leaf: Any) -> Any:
                return self._like(leaf, first.memory, first.shown) if isinstance(leaf, torch.Tensor) else leaf

            self._env[node] = pytree.tree_map(same, value)
            return
        shared: dict[Any, int] = {}
        for source in node.all_input_nodes:
            pairs = zip(_tensors(self._captured.values.get(source)), _leaves(self._env[source]), strict=False)
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
            run.writes |= {held.memory for held in _leaves(self._env.get(source))}

    def _like(self, leaf: torch.Tensor, memory: int, shown: Size | None) -> Held:
        return Held(memory, shown, like=leaf)


@dataclass(frozen=True)
class _PlainCall:
    """A call that writes nothing, and each of whose results is in memory of its own; others alike are not run.

    Attributes:
        results: bytes of the memory of each.
        draws, workspace, scratch: as of its run.
        effect: what it reads.
    """

    draws: bool
    results: list[int]
    workspace: tuple[Size, ...]
    scratch: Scratch | None
    effect: Effect


def _leaves(value: Any) -> Iterator[Held]:
    if isinstance(value, Held):  # nearly always, and a walk through a tree takes long
        yield value
        return
    for leaf in pytree.tree_leaves(value, is_leaf=_is_held):
        if isinstance(leaf, Held):
            yield leaf


def _is_held(leaf: Any) -> bool:
    return isinstance(leaf, Held)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _metadata(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The sizes, the strides, and whether a gradient is asked for."""
    return tuple(map(to_expr, tensor.shape)), tuple(map(to_expr, tensor.stride())), is_learned(tensor)


def _has_stand_in(tensor: torch.Tensor) -> bool:
    return not is_wrapped(tensor) and is_strided(tensor)


def _layout(held: Held) -> Any:
    """Sizes, strides and kind of a tensor; None where a size is symbolic or there is no stand-in."""
    tensor = held.like if held.tensor is None else held.tensor
    if tensor is None or not _has_stand_in(tensor):
        return None
    offset = 0 if held.tensor is None else tensor.storage_offset()  # a stand-in begins where its memory does
    numbers = (*tensor.shape, None, *tensor.stride(), None, offset)
    if any(isinstance(number, torch.SymInt) for number in numbers):
        return None
    return numbers, tensor.dtype, tensor.device, is_learned(tensor), tensor.is_conj(), tensor.is_neg()
