"""The plans of graphs that are compiled and alive, so that a report can be asked of the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .plan import Plan


class LiveGraph:
    """A compiled graph: its plan, and the weights that tell whose graph it is."""

    def __init__(self, plan: Plan, weights: Iterable[torch.Tensor]) -> None:
        self.plan = plan
        self._weights = [weakref.ref(weight) for weight in weights]

    def reads_any(self, weights: set[int]) -> bool:
        return any(id(weight()) in weights for weight in self._weights)


_LIVE: weakref.WeakKeyDictionary[Callable[..., Any], LiveGraph] = weakref.WeakKeyDictionary()


def register(function: Callable[..., Any], graph: LiveGraph) -> None:
    """Remember a graph as long as its compiled function lives."""
    _LIVE[function] = graph


def live_graphs(model: torch.nn.Module | Callable[..., Any]) -> list[LiveGraph]:
    """The live graphs that read a parameter or buffer of ``model``, in the order of compilation.

    A compiled function has no parameters to know it by: then all live graphs.
    """
    if not isinstance(model, torch.nn.Module):
        return list(_LIVE.values())
    weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return [graph for graph in _LIVE.values() if graph.reads_any(weights)]
