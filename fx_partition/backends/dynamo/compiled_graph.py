"""The record of a compiled graph, and its report."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fx_partition.common.errors import PartitionWarning
from fx_partition.passes.plan.plan import Plan
from fx_partition.report import render
from fx_partition.report.compiled_plans import PlannedGraph, register
from fx_partition.report.output import write

from ..lowering.stage import Stage
from ..options.backend_options import Options


class CompiledGraph(PlannedGraph):
    """One graph that this backend compiled.

    Attributes:
        stages: its stages; () where it runs as one partition.
        rows: the rows of the largest microbatch that it was planned for; None where the batch runs whole.
        reads: the weights that stages of this process read, and the device of a stage that does; the graph keeps no
            weight alive.
    """

    def __init__(
        self,
        plan: Plan,
        stages: tuple[Stage, ...],
        weights: Iterable[torch.Tensor],
        rows: int | None = None,
        reads: Iterable[tuple[torch.Tensor, torch.device]] = (),
    ) -> None:
        super().__init__(plan, weights)
        self.stages = stages
        self.rows = rows
        self.reads = [(weakref.ref(weight), device) for weight, device in reads]


def publish(function: Callable[..., Any], graph: CompiledGraph, options: Options) -> None:
    """Remember a compiled graph as long as its function lives, and write the report that the options ask for."""
    register(function, graph)
    if options.report is False:
        return
    text = render(graph.plan, options.report_format)
    if isinstance(options.report, str):
        try:
            write(text, Path(options.report), "report=")
        except ValueError as error:  # `Options.check` could still write there; the compiled graph is right
            warnings.warn(f"the report of a graph was not written: {error}", PartitionWarning, stacklevel=2)
    else:
        print(text, file=sys.stderr)
