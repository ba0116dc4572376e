"""Keep the nodes that a block wrote into a tracer's graph, and write them again for a block that is like it.

The names of nodes come from the tracer's own counters, which count dead nodes too, so they are the names that a trace
would have given.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from .block_call import SIMPLE, BlockCall, known, looks_alike, memory_of
from .export_tracer import fresh_like, new_storage, snapshot
from .fake_tensors import FakeTensor
from .operators import OpOverload, schema_of

_SIZES = (torch.SymInt, torch.SymBool, torch.SymFloat, int, float)


class Template:
    """The nodes that a block wrote, with all that is necessary to write them again."""

    def __init__(
        self, call: BlockCall, nodes: list[torch.fx.Node], result: Any, functions: Mapping[torch.fx.Node, Any]
    ) -> None:
        self.call, self._nodes, self.used = call, nodes, False
        self._function_of = functions
        counts = {f: n - call.functions.get(f, 0) for f, n in call.tracing.functions.items()}
        self._function_counts = {f: n for f, n in counts.items() if n}
        self._last_function = call.tracing.last_function
        self._leaves, self._spec = pytree.tree_flatten(result)
        self._inside = set(nodes)
        tensors = [leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor)]
        sizes = [size for t in tensors for size in (*t.shape, *t.stride()) if isinstance(size, torch.SymInt)]
        # Look these up now: later blocks may give a tensor another node, and ask for a size that has none yet.
        self._node_of_leaf = {id(tensor): call.tracing.node_of(tensor) for tensor in tensors}
        self._node_of_size = {size.node: call.tracing.node_of(size) for size in sizes}
        newest = zip(call.tensors, call.nodes, map(call.tracing.node_of, call.tensors), strict=True)
        self._renamed: dict[int, Any] = {i: new for i, (_, old, new) in enumerate(newest) if new is not old}
        self._calls = {path: n for path, n in call.tracing.calls.items() if n != call.calls.get(path, 0)}

    @classmethod
    def of(cls, call: BlockCall, result: Any, functions: Mapping[torch.fx.Node, Any]) -> Template | None:
        """Return the template of a call; None if a node is more than a function of arguments, weights and sizes."""
        nodes = _nodes_after(call)
        made = cls(call, nodes, result, functions)
        return made if made._is_complete() else None

    # ---- which blocks may be written again

    def _is_complete(self) -> bool:
        """Whether all that the block wrote and returned can be written again for another one."""
        call = self.call
        given = set(call.nodes)
        if not all(_may_repeat(node) and _candidate(node) for node in self._nodes):
            return False
        for node in self._nodes:
            for source in node.all_input_nodes:
                if source not in self._inside and source not in given and not _is_size(source):
                    return False
            for key, (path, _) in node.meta["nn_module_stack"].items():
                # A module elsewhere in the model, called by the block, would be the same one for every block.
                outer = any(key == scope for scope, _ in call.scopes)
                if not outer and not (key.startswith(f"{call.scope}.") and path.startswith(f"{call.path}.")):
                    return False
        if any(path != call.path and not path.startswith(f"{call.path}.") for path in self._calls):
            return False
        if not self._inside.issuperset(self._renamed.values()):
            return False
        if not all(node in self._function_of for node in self._nodes):
            return False
        return all(self._can_return(leaf) for leaf in self._leaves)

    def _can_return(self, leaf: Any) -> bool:
        if type(leaf) in SIMPLE:
            return True
        if type(leaf) is not FakeTensor:
            return False
        if any(leaf is tensor for tensor in self.call.tensors):
            return True
        node = self._node_of_leaf[id(leaf)]
        return node in self._inside and memory_of(leaf) not in {*map(memory_of, self.call.tensors)}

    # ---- writing

    def write(self, call: BlockCall) -> Any:
        """Write the nodes of the template for another call, and return what the block would."""
        tracing = call.tracing
        twin = dict(zip(self.call.nodes, call.nodes, strict=True))
        memory: dict[int, torch.Tensor] = dict(zip(map(memory_of, self.call.tensors), call.tensors, strict=True))
        for node in self._nodes:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: twin.get(n, n))
            twin[node] = copy = tracing.add(node, args, kwargs, _candidate(node) or "")
            copy.meta = {**node.meta, "nn_module_stack": self._scopes(node, call)}
            copy.meta["val"] = pytree.tree_map(lambda v: _again(v, memory), node.meta["val"])
            if "torch_fn" in node.meta:
                copy.meta["torch_fn"] = self._function(node, call)
        result = self._result(call, twin, memory)
        for place, node in self._renamed.items():  # `x.to(x.dtype)` is x itself, and its node stands for x from now on
            tracing.track(call.tensors[place], twin[node])
        for function, count in self._function_counts.items():
            tracing.functions[function] = tracing.functions.get(function, 0) + count
        for path in self._calls:
            if path != self.call.path:
                again = call.path + path[len(self.call.path) :]
                tracing.calls[again] = self._calls[path] - self.call.calls.get(path, 0)
        tracing.last_function = self._last_function
        return result

    def _scopes(self, node: torch.fx.Node, call: BlockCall) -> dict[str, Any]:
        found = {}
        outer = {key for key, _ in call.scopes[:-1]}
        for key, (path, kind) in node.meta["nn_module_stack"].items():
            if key in outer:
                found[key] = (path, kind)
            else:
                found[call.scope + key[len(self.call.scope) :]] = (call.path + path[len(self.call.path) :], kind)
        return found

    def _function(self, node: torch.fx.Node, call: BlockCall) -> tuple[str, str] | None:
        """Return a node's ``torch_fn`` for another call: the function's counter goes on from that call's start."""
        if "torch_fn" not in node.meta:
            return None
        text, kind = node.meta["torch_fn"]
        name, _, count = text.rpartition("_")
        function = self._function_of[node]
        return f"{name}_{int(count) - self.call.functions.get(function, 0) + call.functions.get(function, 0)}", kind

    def _result(
        self, call: BlockCall, twin: Mapping[torch.fx.Node, torch.fx.Node], memory: dict[int, torch.Tensor]
    ) -> Any:
        sizes: dict[Any, Any] = {}
        for theirs, mine in zip(self.call.tensors, call.tensors, strict=True):
            pairs = zip((*theirs.shape, *theirs.stride()), (*mine.shape, *mine.stride()), strict=True)
            sizes |= {a.node: b for a, b in pairs if isinstance(a, torch.SymInt)}
        leaves: list[Any] = []
        for leaf in self._leaves:
            same = next((i for i, tensor in enumerate(self.call.tensors) if tensor is leaf), None)
            if same is not None:
                leaves.append(call.tensors[same])
            elif isinstance(leaf, torch.Tensor):
                leaves.append(self._tensor(leaf, call, twin, memory, sizes))
            else:
                leaves.append(leaf)
        return pytree.tree_unflatten(leaves, self._spec)

    def _tensor(self, leaf: Any, call: BlockCall, twin: Mapping[torch.fx.Node, torch.fx.Node],
                memory: dict[int, torch.Tensor], sizes: dict[Any, Any]) -> torch.Tensor:  # fmt: skip
        tracing = call.tracing

        def own(size: Any) -> Any:
            """Return the other call's size for one of the template's; a new one where the block made the size."""
            if not isinstance(size, torch.SymInt) or size.node in sizes:
                return sizes[size.node] if isinstance(size, torch.SymInt) else size
            node = self._node_of_size[size.node]
            if node is not None and node not in self._inside:
                return size
            fresh = size.node.shape_env.create_symintnode(size.node.expr, hint=size.node.hint)
            sizes[size.node] = fresh
            if node is not None:
                tracing.track_size(fresh, twin[node])
            return fresh

        key = memory_of(leaf)
        if key not in memory:
            memory[key] = new_storage(leaf)
        tensor = fresh_like(leaf, [*map(own, leaf.shape)], [*map(own, leaf.stride())], memory[key])
        tracing.track(tensor, twin[known(self._node_of_leaf[id(leaf)])])
        return tensor

    # ---- the last block

    def is_confirmed_by(self, call: BlockCall, result: Any) -> bool:
        """Whether a traced call wrote the nodes that the template would have written."""
        nodes = _nodes_after(call)
        if not call.is_like(self.call) or len(nodes) != len(self._nodes):
            return False
        if pytree.tree_structure(result) != self._spec:
            return False
        twin = dict(zip(self.call.nodes, call.nodes, strict=True))
        for mine, its in zip(self._nodes, nodes, strict=True):
            expected = torch.fx.map_arg((mine.args, mine.kwargs), lambda n: twin.get(n, n))
            if mine.target != its.target or expected != (its.args, its.kwargs):
                return False
            expects = {"nn_module_stack": self._scopes(mine, call), "torch_fn": self._function(mine, call)}
            if mine.meta.keys() != its.meta.keys() or any(its.meta.get(key) != value for key, value in expects.items()):
                return False
            if mine.meta.get("stack_trace") != its.meta.get("stack_trace"):
                return False
            if not _same_value(mine.meta.get("val"), its.meta.get("val")):
                return False
            twin[mine] = its
        return True


def _nodes_after(call: BlockCall) -> list[torch.fx.Node]:
    """Return the nodes that were written since the start of a call, in order."""
    found = []
    for node in reversed(call.tracing.graph.nodes):
        if node is call.after:
            break
        found.append(node)
    return found[::-1]


def _may_repeat(node: torch.fx.Node) -> bool:
    """Whether a copy of a node computes what a trace of it would: it neither writes, nor draws, nor depends on data."""
    if node.op != "call_function" or not {"nn_module_stack", "val"} <= node.meta.keys():
        return False
    if node.meta.keys() & {"unbacked_bindings", "seq_nr", "custom"}:
        return False
    target = node.target
    if isinstance(target, OpOverload):
        if schema_of(target).is_mutable or _DATA & {*target.tags} or _draws(node, target):
            return False
    elif not _is_size(node) and target is not operator.getitem:
        return False
    return all(
        v is None or type(v) is FakeTensor or isinstance(v, _SIZES) for v in pytree.tree_leaves(node.meta["val"])
    )


# Operators that return numbers of the data; one whose shape depends on the data has unbacked_bindings instead.
_DATA = {torch.Tag.data_dependent_output}


def _draws(node: torch.fx.Node, target: OpOverload) -> bool:
    """Whether an operator draws random numbers; a dropout that is off does not."""
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = {a.name: a.default_value for a in schema_of(target).arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    return given.get("dropout_p") != 0.0 and given.get("train") is not False


def _is_size(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), _SIZES)


def _tensors(value: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _candidate(node: torch.fx.Node) -> str | None:
    """Return the name that the tracer asked for, before the graph made it unique; None if it is not the operator's."""
    base = re.sub(r"_\d+$", "", node.name)
    asked = [getattr(node.target, "__name__", "")]
    if isinstance(node.target, OpOverload):
        asked.append(node.target.overloadpacket.__name__)
    names = (re.sub(r"\W+", "_", node.graph._target_to_str(name)) for name in asked)
    return base if base in names else None


def _again(value: Any, memory: dict[int, torch.Tensor]) -> Any:
    """Return the value of a node's copy: the same metadata, in the memory of the other block."""
    if not isinstance(value, torch.Tensor):
        return value
    key = memory_of(value)
    if key not in memory:
        memory[key] = new_storage(value)  # type: ignore[arg-type]
    return snapshot(value, memory[key])  # type: ignore[arg-type]


def _same_value(a: Any, b: Any) -> bool:
    leaves, others = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(leaves) == len(others) and all(map(_same_leaf, leaves, others))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, FakeTensor) and isinstance(b, FakeTensor):
        return looks_alike(a, b)
    if isinstance(a, _SIZES) and isinstance(b, _SIZES):
        return type(a) is type(b) and _expression(a) == _expression(b)
    return a is b


def _expression(size: Any) -> Any:
    return size if isinstance(size, int | float) else size.node.expr
