"""Where the tensors of a run are: the memories of a graph, and the dummy inputs that share memory as its tensors do.

Before (``x`` is in memory 0, and nothing has asked for it)::

    x: Held(0, like=x)

After a node has run on it, which returned ``x[:2]`` and ``x + 1``::

    x: Held(0, tensor=x');  x[:2]: Held(0, tensor=x'[:2]), as its storage is that of x';  x + 1: Held(1), a new memory
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.fake_tensors import FakeTensorMode, dummy_input_for, no_new_guards
from ..capture.symbolic_sizes import Size, add_up, smallest, to_expr
from ..capture.tensor_storage import bytes_of, storage_key
from ..capture.tensor_subclasses import plain_tensors
from .alike_calls import has_dummy_input
from .memories import MADE, WEIGHT, Memory
from .recorder import metadata_of
from .runs import Held, is_held, tensors_in


class DummyInputs:
    """The memories of one graph, and the dummy inputs that show them.

    Args:
        memories: those that are there before the graph runs; those that nodes make are appended.
        names: the user's names of nodes, for the memories that they make.
        mode: the fake mode of the dummy inputs.
    """

    def __init__(self, memories: list[Memory], names: Mapping[torch.fx.Node, str], mode: FakeTensorMode) -> None:
        self._memories, self._names, self._mode = memories, names, mode
        self._memory_at: dict[Hashable, int] = {}
        self._kept: list[torch.Tensor] = []  # a key of memory is good while its tensor lives

    def of(self, held: Held) -> torch.Tensor | None:
        """Return the dummy input of a tensor, which is made now if nothing has asked for it; None if none can be."""
        if held.tensor is None and held.like is not None:
            held.tensor, held.like = self._dummy_input(held.like), None
            self._keep(held)
        return held.tensor

    def in_place_of(self, value: Any) -> Any:
        """Return what a node holds with dummy inputs in place of its tensors."""
        return pytree.tree_map_only(Held, self.of, value, is_leaf=is_held)

    def memories_at(self, keys: Iterable[Hashable]) -> set[int]:
        """Return the memories of these storages; a storage that only the last run has used is none."""
        return {self._memory_at[key] for key in keys if key in self._memory_at}

    def _dummy_input(self, leaf: torch.Tensor) -> torch.Tensor | None:
        if not has_dummy_input(leaf):
            return None
        with no_new_guards(self._mode.shape_env), torch.no_grad(), self._mode:
            return dummy_input_for(leaf)

    def _keep(self, held: Held) -> Held:
        if held.tensor is not None:
            self._kept.append(held.tensor)
            for plain in plain_tensors(held.tensor):
                self._memory_at[storage_key(plain)] = held.memory
        return held

    def note_resize(self, held: Held) -> None:
        """Note how large a memory is after a run that has written a tensor in it: `resize_` may have changed it."""
        assert held.tensor is not None
        memory = self._memories[held.memory]
        first = plain_tensors(held.tensor)[0]
        size = to_expr(first.untyped_storage().nbytes())
        if first is held.tensor and memory.kind == MADE and self._memory_at.get(storage_key(first)) == held.memory:
            memory.bytes = size

    # ---- results: each returns a node's value with `Held` in place of its tensors

    def place(self, node: torch.fx.Node, value: Any, result: Any, given: Sequence[Held]) -> Any:
        """Note where the tensors of a result are that a run has returned; their layouts are those of ``value``.

        Args:
            value: what the tracer has seen.
            given: the tensors on whose dummy inputs it ran.
        """
        results = iter(tensors_in(result))

        def held(leaf: torch.Tensor) -> Held:
            found = next(results)
            inner = plain_tensors(found)
            number = self._memory_at.get(storage_key(inner[0]))
            shown: Size | None = None
            if number is None:
                number = self._make(node, add_up({storage_key(t): _storage_bytes(t) for t in inner}.values()))
            elif self._memories[number].kind == WEIGHT:
                shown = self._shown(number, leaf, given)
            kept = self._keep(Held(number, shown, tensor=found))
            if metadata_of(found) != metadata_of(leaf) or found.dtype != leaf.dtype:
                return Held(number, shown, like=leaf)
            return kept

        return _placed(value, held)

    def place_apart(self, node: torch.fx.Node, value: Any, sizes: Sequence[Size]) -> Any:
        """Note that each tensor of a result is in memory of its own, of these bytes."""
        left = iter(sizes)
        return _placed(value, lambda leaf: Held(self._make(node, next(left)), like=leaf))

    def place_as_traced(self, node: torch.fx.Node, value: Any, given: Iterable[tuple[torch.Tensor, Held]]) -> Any:
        """Note that each tensor of a result shares memory as the tracer has seen it.

        Args:
            given: what the node takes, as the tracer has seen it and where it is.
        """
        memory_at = {storage_key(leaf): held.memory for leaf, held in given}

        def held(leaf: torch.Tensor) -> Held:
            key = storage_key(leaf)
            if key not in memory_at:
                memory_at[key] = self._make(node, bytes_of(leaf))
            return Held(memory_at[key], like=leaf)

        return _placed(value, held)

    def place_in(self, source: Held, value: Any) -> Any:
        """Note that each tensor of a result is in the memory of another tensor."""
        return _placed(value, lambda leaf: Held(source.memory, source.shown, like=leaf))

    def _make(self, node: torch.fx.Node, size: Size) -> int:
        self._memories.append(Memory(self._names.get(node, node.name), size, MADE, maker=node))
        return len(self._memories) - 1

    def _shown(self, number: int, leaf: torch.Tensor, given: Sequence[Held]) -> Size | None:
        """What a view shows of a weight: as much as its source where it is as large, else its own bytes."""
        size, whole = bytes_of(leaf), self._memories[number].bytes
        for held in given:
            if held.memory == number and held.tensor is not None and bytes_of(held.tensor) == size:
                return held.shown
        shown = smallest(whole, size)
        return None if shown == whole else shown


def _storage_bytes(tensor: torch.Tensor) -> Size:
    return to_expr(tensor.untyped_storage().nbytes())


def _placed(value: Any, held: Callable[[torch.Tensor], Held]) -> Any:
    if isinstance(value, torch.Tensor):  # nearly always, and a walk through a tree takes long
        return held(value)
    return pytree.tree_map_only(torch.Tensor, held, value)
