"""Runs a graph's batch in microbatches: all of them through one partition, then all through the next.

So the weights of a partition are fetched once a call and used for every microbatch, and the activations of a microbatch
are few enough to stay in the cache beside them. The call is one generated function::

    def forward(self, s0, x, weight, weight_1):
        _blocks = self.blocks(s0)                     # ((0, 11), (11, 11), (22, 10)) for 32 rows in three
        if not _blocks:
            return self.whole(s0, x, weight, weight_1)
        s0 = [_n for _, _n in _blocks]
        x = [x.narrow(0, _i, _n) for _i, _n in _blocks]
        relu, = zip(*[self.partition_0(_of_s0, _of_x, weight) for _of_s0, _of_x in zip(s0, x)]); x = None
        mul, = zip(*[self.partition_1(_of_s0, _of_relu, weight_1) for _of_s0, _of_relu in zip(s0, relu)]); relu = None
        return (self.cat(mul, 0),)

Stages are compiled once, for a symbolic number of rows with that of a microbatch as its hint (see `refake`); what they
were compiled to assume of it holds for every microbatch, or the batch runs whole (see
`batching.microbatch_size.BatchSplitter` and `whole_batch`). A partition that takes nothing of the batch runs once.
Results are made anew: two that share memory when the batch runs whole do not.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
import torch.fx

from fx_partition.common.errors import PartitionError
from fx_partition.passes.batching.microbatch_size import BatchSplitter, plan_microbatches
from fx_partition.passes.batching.separability import WAY_OUT, Separation, separate
from fx_partition.passes.capture.capture_model import CapturedGraph, value_of
from fx_partition.passes.capture.respecialize import Refaked, refake
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.split.split_module import PREFIX

from ..devices.home_device import home_of, refuse_several
from ..inline.runtime import Install
from ..inline.whole_batch import WholeBatch
from ..lowering.graph_edits import shares_memory
from ..lowering.stage import Stage
from ..options.backend_options import Options
from .batch_slices import BatchSlices


@dataclass(frozen=True)
class MicrobatchPlan:
    """How the batch of one graph is cut.

    Attributes:
        separation: what is cut and what is joined.
        plan: the plan for microbatches.
        rows: the rows of the largest microbatch that it was made for.
        count: how many microbatches were asked for; None: as many as ``rows`` needs.
    """

    separation: Separation
    plan: Plan
    rows: int
    count: int | None

    @classmethod
    def of(
        cls, captured: CapturedGraph, facts: GraphMemory, asked: Options, example_inputs: Sequence[Any]
    ) -> MicrobatchPlan | None:
        """None where the batch is to run whole, asked for or as no cut would gain.

        Raises:
            PartitionError: gradients are needed, stages run on several devices, or the graph is not separable.
        """
        if asked.microbatches == 1:
            return None
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
            raise PartitionError(
                f"microbatches are for inference, and an input or a parameter needs a gradient: run under "
                f"torch.no_grad(), or {WAY_OUT}"
            )
        if not asked.ranks:
            refuse_several(captured, "microbatches run in line on one device", WAY_OUT)
            home = home_of(captured)
            for name in asked.request.devices:
                if not shares_memory(torch.device(name), home):
                    raise PartitionError(
                        f"microbatches run in line where the model is, on {home}, and {name!r} is among the devices: "
                        f'say devices="{home}", or {WAY_OUT}'
                    )
        separation = separate(captured)
        symbols = (separation.symbol, *separation.equal)
        found = plan_microbatches(captured, facts, asked.request, symbols, asked.microbatches)
        if found is None:
            return None
        plan, rows = found
        note = f"A call runs in microbatches of at most {rows} rows, all of them through a partition before the next."
        return cls(separation, replace(plan, note=note), rows, asked.microbatches)

    def refaked(self, traced: CapturedGraph) -> Refaked:
        """The planned graph with the fake values of a microbatch."""
        return refake(traced, dict.fromkeys(self._names, self.rows))

    def batch(self, made: Refaked) -> tuple[sympy.Symbol, ...]:
        """The batch's symbol in what `refaked` made, and those that are taken for the same."""
        return tuple(made.symbols[name] for name in self._names)

    def cutter(self, traced: CapturedGraph, made: Refaked, guards: Sequence[sympy.Basic]) -> BatchSplitter:
        """What cuts a batch, given the sizes of the graph's symbol inputs in their order.

        Args:
            guards: what compiled stages assume of their sizes.
        """
        symbols = tuple(made.symbols[name] for name in traced.symbol_inputs)
        return BatchSplitter(symbols, self.batch(made), self.count, self.rows, guards)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.separation.symbol, *self.separation.equal

    def assemble(
        self,
        traced: CapturedGraph,
        made: Refaked,
        stages: Sequence[Stage],
        install: Install,
        patches: Mapping[str, Any],
    ) -> Callable[..., Any]:
        """One function of the graph's inputs that runs the compiled stages microbatch by microbatch.

        Args:
            traced: the planned graph with the values of the trace.
            made: what `refaked` made of it; the stages are cut out of that.
            install: see `inline.runtime.assemble`.
            patches: options of inductor for a batch that cannot be cut.
        """
        return _Writer(self, traced, made, stages, install, WholeBatch(traced, patches)).run()


class _Writer:
    """Writes the function's text."""

    def __init__(
        self,
        cutting: MicrobatchPlan,
        traced: CapturedGraph,
        made: Refaked,
        stages: Sequence[Stage],
        install: Install,
        whole: Callable[..., Any],
    ) -> None:
        self._cutting, self._captured, self._stages = cutting, made.captured, stages
        self._batch = cutting.batch(made)
        (output,) = traced.gm.graph.find_nodes(op="output")
        self._results = output.args[0]  # a result is laid out as that of the whole batch
        self._scope = types.SimpleNamespace(whole=whole, cat=torch.cat)  # nodes have names like cat
        self._scope.blocks = cutting.cutter(traced, made, made.guards)
        install(lambda stage, function: setattr(self._scope, f"{PREFIX}{stage.index}", function))
        self._lines: list[str] = []
        self._lists: set[torch.fx.Node] = set()  # what has an entry for each microbatch

    def run(self) -> Callable[..., Any]:
        graph = self._captured.gm.graph
        arguments = ", ".join(node.name for node in graph.find_nodes(op="placeholder"))
        self._write_blocks(arguments)
        last = self._last_uses()
        for stage in self._stages:
            self._write_stage(stage)
            for node in last.get(stage.index, ()):
                self._lines[-1] += f"; {node.name} = None"
        results = zip(self._results, self._cutting.separation.outputs, strict=True)
        joined = "".join(f"{self._joined(node, dim)}, " for node, dim in results)
        self._lines.append(f"return ({joined})")
        source = f"def forward(self, {arguments}):\n" + "".join(f"    {line}\n" for line in self._lines)
        namespace: dict[str, Any] = {}
        exec(compile(source, f"<l2partition {len(self._stages)} stages in microbatches>", "exec"), namespace)
        return types.MethodType(namespace["forward"], self._scope)

    def _write_blocks(self, arguments: str) -> None:
        """The blocks of rows, and the inputs in blocks."""
        sizes = self._captured.symbol_inputs
        self._lines += [
            f"_blocks = self.blocks({', '.join(node.name for node in sizes.values())})",
            "if not _blocks:",
            f"    return self.whole({arguments})",
        ]
        for node in self._captured.gm.graph.find_nodes(op="placeholder"):
            value = self._captured.values.get(node)
            dim = self._cutting.separation.inputs.get(node.name)
            if dim is not None:
                assert isinstance(value, torch.Tensor)
                name, written = self._captured.names.get(node, node.name), self._cutting.separation.written
                rows = BatchSlices.of_input(value, dim, self._batch, name, written=node.name in written)
                self._lines.append(f"{node.name} = [{rows.take_text(node.name, '_i', '_n')} for _i, _n in _blocks]")
                self._lists.add(node)
            elif isinstance(value, torch.SymInt) and to_expr(value) in self._batch:
                self._lines.append(f"{node.name} = [_n for _, _n in _blocks]")
                self._lists.add(node)

    def _last_uses(self) -> dict[int, list[torch.fx.Node]]:
        """By partition, the values that nobody needs after it."""
        (output,) = self._captured.gm.graph.find_nodes(op="output")
        kept = set(output.all_input_nodes) | set(self._captured.symbol_inputs.values())
        last: dict[torch.fx.Node, int] = {}
        for stage in self._stages:
            last |= dict.fromkeys((*stage.stub.outputs, *stage.stub.inputs), stage.index)
        result: dict[int, list[torch.fx.Node]] = {}
        for node, index in last.items():
            if node not in kept and node not in self._captured.weights:
                result.setdefault(index, []).append(node)
        return result

    def _write_stage(self, stage: Stage) -> None:
        call = f"self.{PREFIX}{stage.index}"
        names = [self._name(node) for node in stage.stub.inputs]
        lists = [name for name, node in zip(names, stage.stub.inputs, strict=True) if node in self._lists]
        results = "".join(f"{node.name}, " for node in stage.stub.outputs)
        target = f"{results}= " if results else ""
        if not lists:
            self._lines.append(f"{target}{call}({', '.join(names)})")
            return
        each = [f"_of_{name}" if name in lists else name for name in names]
        variables = "".join(f"_of_{name}, " for name in lists)
        calls = f"[{call}({', '.join(each)}) for {variables}in zip({', '.join(lists)})]"
        self._lines.append(f"{target}zip(*{calls})" if results else calls)
        self._lists.update(stage.stub.outputs)

    def _name(self, node: torch.fx.Node) -> str:
        if node.op != "get_attr":
            return node.name
        setattr(self._scope, node.name, self._captured.weights[node])
        return f"self.{node.name}"

    def _joined(self, node: Any, dim: int | None) -> str:
        """One result, laid out as that of the whole batch."""
        return (
            repr(node) if dim is None else BatchSlices.of_result(value_of(node), dim).join_text(node.name, "self.cat")
        )
