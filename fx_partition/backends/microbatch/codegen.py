"""Generate the function that runs a batch in microbatches: all through one partition, then all through the next.

So the weights of a partition are fetched once a call and used for every microbatch, and the activations of a microbatch
are small enough to stay in the cache with them. The call is one generated function::

    def forward(self, s0, x, weight, weight_1):
        _blocks = self.blocks(s0)                     # ((0, 11), (11, 11), (22, 10)) for 32 rows in three
        if not _blocks:
            return self.whole(s0, x, weight, weight_1)
        s0 = [_n for _, _n in _blocks]
        x = [x.narrow(0, _i, _n) for _i, _n in _blocks]
        relu, = zip(*[self.partition_0(_of_s0, _of_x, weight) for _of_s0, _of_x in zip(s0, x)]); x = None
        mul, = zip(*[self.partition_1(_of_s0, _of_relu, weight_1) for _of_s0, _of_relu in zip(s0, relu)]); relu = None
        return (self.cat(mul, 0),)

A partition that takes nothing of the batch runs once. Results are new tensors: two that share memory when the batch
runs whole do not share it here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.symbolic_sizes import to_expr
from fx_partition.passes.split.split_module import PREFIX

from ..inline.runtime import Install
from ..inline.whole_batch import WholeBatch
from ..lowering.stage import Stage
from .batch_slices import BatchSlices
from .microbatch_plan import MicrobatchGraph


def assemble_microbatches(
    graph: MicrobatchGraph, stages: Sequence[Stage], install: Install, patches: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return a function of the graph's inputs that runs the compiled stages microbatch by microbatch.

    Args:
        stages: the stages of ``graph.captured``.
        install: see `inline.runtime.assemble`.
        patches: options of inductor for a batch that cannot be cut.
    """
    return _Writer(graph, stages, install, WholeBatch(graph.traced, patches)).run()


class _Writer:
    """Writes the text of the function, and compiles it."""

    def __init__(
        self, graph: MicrobatchGraph, stages: Sequence[Stage], install: Install, whole: Callable[..., Any]
    ) -> None:
        self._separation, self._captured, self._stages = graph.plan.separation, graph.captured, stages
        self._batch = graph.batch
        (output,) = graph.traced.gm.graph.find_nodes(op="output")
        self._results = output.args[0]  # a result is laid out as that of the whole batch
        self._scope = types.SimpleNamespace(whole=whole, cat=torch.cat)  # a node may be called cat, as torch.cat is
        self._scope.blocks = graph.splitter(graph.refaked.guards)
        install(lambda stage, function: setattr(self._scope, f"{PREFIX}{stage.index}", function))
        self._lines: list[str] = []
        self._lists: set[torch.fx.Node] = set()  # nodes whose variable is a list: an entry for each microbatch

    def run(self) -> Callable[..., Any]:
        graph = self._captured.gm.graph
        arguments = ", ".join(node.name for node in graph.find_nodes(op="placeholder"))
        self._write_blocks(arguments)
        last = self._last_uses()
        for stage in self._stages:
            self._write_stage(stage)
            for node in last.get(stage.index, ()):
                self._lines[-1] += f"; {node.name} = None"
        results = zip(self._results, self._separation.outputs, strict=True)
        joined = "".join(f"{self._joined(node, dim)}, " for node, dim in results)
        self._lines.append(f"return ({joined})")
        source = f"def forward(self, {arguments}):\n" + "".join(f"    {line}\n" for line in self._lines)
        namespace: dict[str, Any] = {}
        exec(compile(source, f"<l2partition {len(self._stages)} stages in microbatches>", "exec"), namespace)
        return types.MethodType(namespace["forward"], self._scope)

    def _write_blocks(self, arguments: str) -> None:
        """Write the blocks of rows, and the inputs in blocks."""
        sizes = self._captured.symbol_inputs
        self._lines += [
            f"_blocks = self.blocks({', '.join(node.name for node in sizes.values())})",
            "if not _blocks:",
            f"    return self.whole({arguments})",
        ]
        for node in self._captured.gm.graph.find_nodes(op="placeholder"):
            value = self._captured.values.get(node)
            dim = self._separation.inputs.get(node.name)
            if dim is not None:
                assert isinstance(value, torch.Tensor)
                name, written = self._captured.names.get(node, node.name), self._separation.written
                rows = BatchSlices.of_input(value, dim, self._batch, name, written=node.name in written)
                self._lines.append(f"{node.name} = [{rows.take_text(node.name, '_i', '_n')} for _i, _n in _blocks]")
                self._lists.add(node)
            elif isinstance(value, torch.SymInt) and to_expr(value) in self._batch:
                self._lines.append(f"{node.name} = [_n for _, _n in _blocks]")
                self._lists.add(node)

    def _last_uses(self) -> dict[int, list[torch.fx.Node]]:
        """Return for each partition the values that are not needed after it."""
        (output,) = self._captured.gm.graph.find_nodes(op="output")
        kept = set(output.all_input_nodes) | set(self._captured.symbol_inputs.values())
        last: dict[torch.fx.Node, int] = {}
        for stage in self._stages:
            last |= dict.fromkeys((*stage.partition.outputs, *stage.partition.inputs), stage.index)
        result: dict[int, list[torch.fx.Node]] = {}
        for node, index in last.items():
            if node not in kept and node not in self._captured.weights:
                result.setdefault(index, []).append(node)
        return result

    def _write_stage(self, stage: Stage) -> None:
        call = f"self.{PREFIX}{stage.index}"
        names = [self._name(node) for node in stage.partition.inputs]
        lists = [name for name, node in zip(names, stage.partition.inputs, strict=True) if node in self._lists]
        results = "".join(f"{node.name}, " for node in stage.partition.outputs)
        target = f"{results}= " if results else ""
        if not lists:
            self._lines.append(f"{target}{call}({', '.join(names)})")
            return
        each = [f"_of_{name}" if name in lists else name for name in names]
        variables = "".join(f"_of_{name}, " for name in lists)
        calls = f"[{call}({', '.join(each)}) for {variables}in zip({', '.join(lists)})]"
        self._lines.append(f"{target}zip(*{calls})" if results else calls)
        self._lists.update(stage.partition.outputs)

    def _name(self, node: torch.fx.Node) -> str:
        if node.op == "placeholder" or node not in self._captured.weights:
            return node.name
        setattr(self._scope, node.name, self._captured.weights[node])
        return f"self.{node.name}"

    def _joined(self, node: Any, dim: int | None) -> str:
        """Write one result, laid out as that of the whole batch."""
        if dim is None:
            return repr(node)
        return BatchSlices.of_result(value_of(node), dim).join_text(node.name, "self.cat")
