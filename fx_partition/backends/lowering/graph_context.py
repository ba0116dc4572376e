"""The context of a graph on its way to compiled code: the graph, its memory, its inputs and the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.respecialize import Refaked
from fx_partition.passes.capture.symbolic_sizes import Symbols
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.split.extract import planned_graph

from ..devices.home_device import home_of
from ..options.backend_options import Options


@dataclass(frozen=True)
class GraphContext:
    """A captured and analysed Dynamo graph, with the user's request.

    Attributes:
        captured: the graph.
        memory: what its nodes read, write and allocate.
        inputs: the real inputs, one for each placeholder.
        options: the options of the backend.
        patches: the options of inductor.
    """

    captured: CapturedGraph
    memory: GraphMemory
    inputs: Sequence[Any]
    options: Options
    patches: Mapping[str, Any]

    @cached_property
    def home(self) -> torch.device:
        """The device of the model."""
        return home_of(self.captured)

    @property
    def real(self) -> dict[torch.fx.Node, Any]:
        """The real input of each placeholder."""
        return dict(zip(self.captured.gm.graph.find_nodes(op="placeholder"), self.inputs, strict=True))

    @property
    def needs_gradients(self) -> bool:
        """Whether autograd is on, and an input or a parameter requires a gradient."""
        return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in self.inputs)

    def planned(self, plan: Plan) -> GraphContext:
        """Return the context of the graph that a plan splits (see `planned_with_memory`)."""
        captured, memory = planned_with_memory(self.captured, self.memory, plan)
        return replace(self, captured=captured, memory=memory)

    def with_values(self, made: Refaked) -> GraphContext:
        """Return the context of the same graph with other fake values and symbols."""
        return replace(self, captured=made.captured, memory=replace(self.memory, symbols=Symbols(hints=made.hints)))


def planned_with_memory(captured: CapturedGraph, memory: GraphMemory, plan: Plan) -> tuple[CapturedGraph, GraphMemory]:
    """Return the graph that a plan splits and its memory, which is analysed again only where the plan slices nodes.

    Raises:
        PlanMismatchError: the plan was made for another graph.
    """
    planned = planned_graph(captured, plan)
    return planned, analyze_memory(planned) if plan.slicings else memory
