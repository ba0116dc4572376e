"""Plan a graph for microbatches, and give it the fake values of one microbatch.

Stages are compiled once, for a symbolic number of rows whose hint is that of a microbatch (see `respecialize`). What
they were compiled to assume of the number holds for every microbatch, or the batch runs whole (see
`batching.microbatch_size.BatchSplitter` and `inline.whole_batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy
import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.batching.microbatch_size import BatchSplitter, plan_microbatches
from fx_partition.passes.batching.separability import WAY_OUT, Separation, separate
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.respecialize import Refaked, refake
from fx_partition.passes.plan.plan import Plan

from ..devices.home_device import refuse_several
from ..lowering.graph_context import GraphContext
from ..lowering.graph_edits import shares_memory


@dataclass(frozen=True)
class MicrobatchPlan:
    """A plan for microbatches of a batch.

    Attributes:
        separation: which inputs are cut along the batch, and along which dimension results are joined.
        plan: the plan for one microbatch.
        rows: the rows of the largest microbatch that it was made for.
        count: the number of microbatches that the user asked for; None: as many as ``rows`` needs.
    """

    separation: Separation
    plan: Plan
    rows: int
    count: int | None

    @classmethod
    def of(cls, context: GraphContext) -> MicrobatchPlan | None:
        """Return the plan, or None where the batch is to run whole: the user asked for it, or microbatches do not pay.

        Raises:
            PartitionError: gradients are needed, stages run on several devices, or the graph is not separable.
        """
        options = context.options
        if options.microbatches == 1:
            return None
        if context.needs_gradients:
            raise PartitionError(
                f"microbatches are for inference, and an input or a parameter needs a gradient: run under "
                f"torch.no_grad(), or {WAY_OUT}"
            )
        if not options.ranks:
            _refuse_other_devices(context)
        separation = separate(context.captured)
        symbols = (separation.symbol, *separation.equal)
        found = plan_microbatches(context.captured, context.memory, options.request, symbols, options.microbatches)
        if found is None:
            return None
        plan, rows = found
        note = f"A call runs in microbatches of at most {rows} rows, all of them through a partition before the next."
        return cls(separation, replace(plan, note=note), rows, options.microbatches)

    def refake(self, traced: CapturedGraph) -> MicrobatchGraph:
        """Give a planned graph the fake values of a microbatch."""
        return MicrobatchGraph(self, traced, refake(traced, dict.fromkeys(self.batch_names, self.rows)))

    @property
    def batch_names(self) -> tuple[str, ...]:
        """The name of the batch's symbol in the trace, and those of the symbols that are taken for the same."""
        return self.separation.symbol, *self.separation.equal


@dataclass(frozen=True)
class MicrobatchGraph:
    """The graph of a `MicrobatchPlan` with two sets of fake values.

    Attributes:
        plan: the plan.
        traced: the planned graph with the values of the trace: a result is laid out as there.
        refaked: the same graph with the values of a microbatch: stages are compiled for these.
    """

    plan: MicrobatchPlan
    traced: CapturedGraph
    refaked: Refaked

    @property
    def captured(self) -> CapturedGraph:
        """The graph with the values of a microbatch."""
        return self.refaked.captured

    @property
    def batch(self) -> tuple[sympy.Symbol, ...]:
        """The batch's symbol in `captured`, and those that are taken for the same."""
        return tuple(self.refaked.symbols[name] for name in self.plan.batch_names)

    def splitter(self, guards: Sequence[sympy.Basic]) -> BatchSplitter:
        """Return a function from the sizes of a call, in the order of the graph's symbol inputs, to its microbatches.

        Args:
            guards: what compiled stages assume of their sizes.
        """
        symbols = tuple(self.refaked.symbols[name] for name in self.traced.symbol_inputs)
        return BatchSplitter(symbols, self.batch, self.plan.count, self.plan.rows, guards)


def _refuse_other_devices(context: GraphContext) -> None:
    refuse_several(context.captured, "microbatches run in line on one device", WAY_OUT)
    for name in context.options.request.devices:
        if not shares_memory(torch.device(name), context.home):
            raise PartitionError(
                f"microbatches run in line where the model is, on {context.home}, and {name!r} is among the devices: "
                f'say devices="{context.home}", or {WAY_OUT}'
            )
