"""The modules that a graph calls, with their tensors: those that a tracer of torch.fx leaves whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx

from ..capture.module_members import all_tensors
from .dummy_inputs import DummyInputs
from .runs import Held


class CalledModules:
    """The modules that one graph calls.

    Attributes:
        by_path: all modules of the graph module.
        tensors: the tensors of those that are called, each by the path of its module and its name there.
    """

    def __init__(self, gm: torch.fx.GraphModule) -> None:
        self.by_path = dict(gm.named_modules())
        self.tensors: dict[tuple[str, str], torch.Tensor] = {}
        for node in gm.graph.find_nodes(op="call_module"):
            self.tensors |= {(str(node.target), name): tensor for name, tensor in self.tensors_of(node).items()}
        self._held: dict[tuple[str, str], Held] = {}

    def place(self, memory_of: Mapping[Any, int]) -> None:
        """Note in which memory each of `tensors` is."""
        self._held = {key: Held(memory_of[key], like=tensor) for key, tensor in self.tensors.items()}

    def tensors_of(self, node: torch.fx.Node) -> dict[str, torch.Tensor]:
        """Return the tensors of the module that a node calls, by name; none if it calls no module."""
        return all_tensors(self.by_path[str(node.target)]) if node.op == "call_module" else {}

    def held_by(self, node: torch.fx.Node) -> list[Held]:
        """Return where these tensors are, in the same order."""
        return [self._held[str(node.target), name] for name in self.tensors_of(node)]

    def callable_of(self, node: torch.fx.Node, dummies: DummyInputs) -> Callable[..., Any]:
        """Return what a node calls; a module is called with dummy inputs in place of its tensors."""
        if node.op == "call_function":
            return node.target  # type: ignore[return-value]
        if node.op == "call_method":
            return lambda own, *args, **kwargs: getattr(own, str(node.target))(*args, **kwargs)
        held = dict(zip(self.tensors_of(node), map(dummies.of, self.held_by(node)), strict=True))
        tensors = {name: tensor for name, tensor in held.items() if tensor is not None}
        module = self.by_path[str(node.target)]
        return lambda *args, **kwargs: torch.func.functional_call(module, tensors, args, kwargs)
