"""Trace the leaf operators of a whole graph, over the storages that they read and make.

Before (Dynamo's nodes): ``linear = F.linear(x, w); gelu = F.gelu(linear); getitem = gelu[0]``
After (calls over storages): ``1: addmm reads {x, w}, makes linear;  2: gelu reads {linear}, makes gelu``; the view
``getitem`` makes no storage and is not a call.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import new_fake_mode, shape_env_of
from ..capture.module_members import all_tensors
from ..capture.tensor_subclasses import plain_tensors
from ..footprint.effect_cache import Effects
from ..footprint.graph_memory import GraphMemory
from ..footprint.op_effects import distinct_tensors
from .op_kinds import Call, Calls, Kind, record


@dataclass
class Trace:
    """The calls of a graph that matter to its results, in execution order.

    Attributes:
        calls: (step, call); the storages of a call are numbers of this trace.
        value_of: for a storage the number of its value in `GraphMemory`; storages inside composite operators have none.
        inputs: storages that the caller passes in, weights included.
        returned: storages that the graph returns.
        dense: storages of images that are contiguous in eager: their channels are not innermost.
    """

    calls: list[tuple[int, Call]] = field(default_factory=list)
    value_of: dict[int, int] = field(default_factory=dict)
    inputs: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)
    dense: set[int] = field(default_factory=set)


def trace(captured: CapturedGraph, memory: GraphMemory) -> Trace:
    """Return the calls of a graph; each distinct (operator, argument shapes) runs once on fake tensors."""
    return _Tracer(captured, memory).run()


class _Tracer:
    def __init__(self, captured: CapturedGraph, memory: GraphMemory) -> None:
        self._captured, self._memory = captured, memory
        shape_env = shape_env_of(leaf for value in captured.values.values() for leaf in pytree.tree_leaves(value))
        self._modules = dict(captured.gm.named_modules())
        observe = functools.partial(record, numbers=memory.measured_for)
        self._effects = Effects(self._modules, new_fake_mode(shape_env), memory.symbols, observe)
        self._places: dict[torch.fx.Node, list[int]] = {}  # the storage of each tensor leaf of the node's value
        self._trace = Trace()
        self._storages = 0
        self._made: dict[int, list[int]] = {}
        for number, value in enumerate(memory.values):
            self._made.setdefault(value.made_at, []).append(number)
        self._inputs = {memory.values[number].name: number for number in self._made.get(-1, [])}

    def run(self) -> Trace:
        """Read the nodes in the graph's order, and return the calls in the order of the steps."""
        steps = {step.node: t for t, step in enumerate(self._memory.steps)}
        for node in self._captured.gm.graph.nodes:
            if node.op == "output":
                self._trace.returned = {s for source in node.all_input_nodes for s in self._places.get(source, [])}
            elif node.op in ("placeholder", "get_attr") or node in self._captured.weights:
                self._read_input(node)
            elif not self._pick(node) and not self._effects.enter_or_exit(node):
                self._read_call(node, steps.get(node.name))
        return self._only_needed()

    def _new(self) -> int:
        self._storages += 1
        return self._storages - 1

    def _read_input(self, node: torch.fx.Node) -> None:
        known: dict[int, int] = {}
        places = []
        for tensor in _tensors(self._captured.values.get(node)):
            key = id(plain_tensors(tensor)[0].untyped_storage())
            if key not in known:
                known[key] = self._new()
                self._trace.inputs.add(known[key])
                number = self._inputs.get(self._captured.names.get(node, node.name))
                if node not in self._captured.weights and number is not None:
                    self._trace.value_of[known[key]] = number
            places.append(known[key])
        self._places[node] = places

    def _pick(self, node: torch.fx.Node) -> bool:
        """Give a ``getitem`` of a tuple the storages of the element; return False for any other node."""
        if node.op != "call_function" or getattr(node.target, "__name__", "") != "getitem":
            return False
        source, key = node.args
        if not isinstance(source, torch.fx.Node) or not isinstance(key, int) or source not in self._places:
            return False
        whole = self._captured.values.get(source)
        if not isinstance(whole, (tuple, list)):
            return False
        before = sum(len(_tensors(part)) for part in whole[:key])
        self._places[node] = self._places[source][before : before + len(_tensors(whole[key]))]
        return True

    def _read_call(self, node: torch.fx.Node, step: int | None) -> None:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._captured.values.get(n))
        module_tensors: dict[str, torch.Tensor] = {}
        if node.op == "call_module":
            named = all_tensors(self._modules[str(node.target)])
            module_tensors = {f"{node.target}.{name}": tensor for name, tensor in named.items()}
        value = self._captured.values.get(node)
        seen = None
        if distinct_tensors((module_tensors, args, kwargs)) or _tensors(value):
            seen = self._effects.of(node, args, kwargs, module_tensors)
        place_of: dict[int, int] = {}
        for tensor in module_tensors.values():
            place_of[id(tensor)] = self._new()
            self._trace.inputs.add(place_of[id(tensor)])
        for source in node.all_input_nodes:
            tensors = _tensors(self._captured.values.get(source))
            place_of |= {id(t): place for t, place in zip(tensors, self._places.get(source, []), strict=False)}
        places = [place_of.get(id(t), -1) for t in distinct_tensors((module_tensors, args, kwargs))]
        if seen is None:
            self._assume(node, value, places, step)
        else:
            self._apply(node, seen, places, step)

    def _apply(self, node: torch.fx.Node, seen: Calls, places: list[int], step: int | None) -> None:
        own: dict[int, int] = {}

        def storage(number: int) -> int:
            if number < 0:
                return places[~number]
            if number not in own:
                own[number] = self._new()
            return own[number]

        if step is not None:
            for call in seen.calls:
                self._trace.calls.append((step, _renumbered(call, storage)))
        self._places[node] = [storage(number) for number in seen.outputs]
        for place, tensor in zip(self._places[node], _tensors(self._captured.values.get(node)), strict=False):
            if tensor.dim() in (4, 5) and tensor.is_contiguous():
                self._trace.dense.add(place)
        if step is None:  # a view of a weight, or a number that every partition computes for itself
            self._trace.inputs.update(own.values())
        self._name(dict.fromkeys(p for p, n in zip(self._places[node], seen.outputs, strict=True) if n >= 0), step)

    def _assume(self, node: torch.fx.Node, value: Any, places: list[int], step: int | None) -> None:
        """Treat an operator that does not run on fakes as an external kernel that reads all its arguments."""
        if step is None:
            self._places[node] = places[: len(_tensors(value))]
            return
        made = self._made.get(step, [])
        if not made and _tensors(value):  # it makes no storage, so it returns an argument
            self._places[node] = [place for place in places[:1] for _ in _tensors(value)]
        else:
            self._places[node] = [self._new() for _ in _tensors(value)]
        fresh = [place for place in self._places[node] if place not in places]
        sizes = dict(zip(fresh, (self._memory.values[number].bytes for number in made), strict=False))
        reads = tuple(dict.fromkeys(places))
        call = Call(str(node.target), Kind.EXTERNAL, reads, tuple(sizes.items()), (), 0, 0, (), 0, False, None)
        self._trace.calls.append((step, call))
        self._name(dict.fromkeys(fresh), step)

    def _name(self, fresh: dict[int, None], step: int | None) -> None:
        if step is not None:
            self._trace.value_of |= dict(zip(fresh, self._made.get(step, []), strict=False))

    def _only_needed(self) -> Trace:
        """Return the trace without the calls whose results nothing needs, which AOTAutograd drops."""
        needed = set(self._trace.returned)
        kept = []
        for step, call in sorted(self._trace.calls, key=lambda pair: pair[0])[::-1]:
            made = {storage for storage, _ in call.makes}
            if made & needed or any(w in needed or w in self._trace.inputs for w in call.writes):
                needed.update(call.reads)
                kept.append((step, call))
        return replace(self._trace, calls=kept[::-1])


def split_trace(whole: Trace, starts: Sequence[int]) -> Iterator[Trace]:
    """Yield the traces of partitions that begin at these steps.

    A storage that crosses a boundary is returned by the partition that makes it and an input of those that read it.
    """
    bounds = [*starts, sys.maxsize]
    parts: list[list[tuple[int, Call]]] = [[] for _ in starts]
    part = 0
    for step, call in whole.calls:
        while step >= bounds[part + 1]:
            part += 1
        parts[part].append((step, call))
    needed_later = set(whole.returned)
    result = []
    for calls in reversed(parts):
        made = {storage for _, call in calls for storage, _ in call.makes}
        read = {storage for _, call in calls for storage in (*call.reads, *call.writes)}
        result.append(Trace(calls, whole.value_of, read - made, made & needed_later, whole.dense))
        needed_later |= read - made
    return reversed(result)


def _renumbered(call: Call, storage: Any) -> Call:
    return replace(
        call,
        reads=tuple(dict.fromkeys(storage(number) for number in call.reads)),
        makes=tuple((storage(number), size) for number, size in call.makes),
        writes=tuple(storage(number) for number in call.writes),
        relayouts=call.relayouts and (storage(call.relayouts[0]), call.relayouts[1]),
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
