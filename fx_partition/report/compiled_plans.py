"""Keep the plans of compiled graphs, so that a report can find the plans of a model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fx_partition.passes.capture.module_members import all_tensors
from fx_partition.passes.plan.plan import Plan


class PlannedGraph:
    """A compiled graph: its plan, and the weights that tell which model it is from."""

    def __init__(self, plan: Plan, weights: Iterable[torch.Tensor]) -> None:
        self.plan = plan
        self._weights = [weakref.ref(weight) for weight in weights]

    def reads_any(self, weights: set[int]) -> bool:
        return any(id(weight()) in weights for weight in self._weights)


_LIVE: weakref.WeakKeyDictionary[Callable[..., Any], PlannedGraph] = weakref.WeakKeyDictionary()


def register(function: Callable[..., Any], graph: PlannedGraph) -> None:
    """Keep the plan of a graph as long as its compiled function lives."""
    _LIVE[function] = graph


def live_graphs() -> list[PlannedGraph]:
    """Return the graphs of all models whose compiled functions exist, oldest first."""
    return list(_LIVE.values())


def compiled_graphs(model: torch.nn.Module | Callable[..., Any]) -> list[PlannedGraph]:
    """Return the graphs of a model that ``backend="l2partition"`` has compiled, oldest first.

    A graph is in the list as long as its compiled function exists.

    Args:
        model: the model, or the result of torch.compile for it. A compiled function has no parameters to find its
            graphs by, so all compiled graphs are returned.

    Returns:
        One object for each graph, with ``.plan``, ``.stages`` (empty where it runs as one partition) and ``.rows`` (of
        the largest microbatch; None where the batch runs whole).

    Example::

        >>> model = torch.nn.Linear(8, 8)
        >>> compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "1MiB"})
        >>> compiled(torch.randn(2, 8)); fx_partition.compiled_graphs(model)[0].plan.num_partitions   # doctest: +SKIP
        1
    """
    if not isinstance(model, torch.nn.Module):
        return live_graphs()
    weights = {id(tensor) for tensor in all_tensors(model).values()}
    return [graph for graph in live_graphs() if graph.reads_any(weights)]
