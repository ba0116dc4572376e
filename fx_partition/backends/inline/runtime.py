"""The in-line runtime: stages run one after another in the caller's thread. It is the reference for the others.

The call is one generated Python function, which fx writes from the graph that calls the partitions, and which frees
every value after its last use::

    def forward(self, s0, x, weight, weight_1):
        partition_0 = self.partition_0(x, weight);          relu = partition_0[0]
        to = relu.to(device(type='cuda', index=1), copy=True, non_blocking=True)    # only between devices
        weight_2 = self.weight_1(weight_1)                                          # its copy there
        partition_1 = self.partition_1(to, weight_2);       linear_1 = partition_1[0]
        return (linear_1,)

The streams of two GPUs order a copy between them, and the host does not wait for it. The host waits for a copy from or
to its own memory: a result on the CPU may be read at once, also by a later stage on the CPU, and an input in pinned
memory may be written again as soon as the call returns.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.fx

from fx_partition.passes.capture.autocast_regions import sets_grad_mode
from fx_partition.passes.capture.captured_graph import CapturedGraph, value_of
from fx_partition.passes.split.extract import stitch
from fx_partition.passes.split.split_module import PREFIX

from ..lowering.stage import Stage
from ..weights.device_copies import STORE, WeightOnDevice

#: Calls a function with each stage and its code; the function puts the code where it is called from.
Install: TypeAlias = Callable[[Callable[[Stage, Callable[..., Any]], None]], None]


def assemble(
    captured: CapturedGraph,
    stages: Sequence[Stage],
    install: Install,
    written: frozenset[str],
) -> Callable[..., Any]:
    """Return a function of the graph's inputs that runs the compiled stages in order.

    Args:
        install: calls its argument with each stage and its code: a function of ``stage.partition.inputs`` that returns
            ``stage.partition.outputs``.
        written: the names of the inputs that the graph writes.
    """
    graph = stitch(captured.gm.graph, [stage.partition for stage in stages])
    scope = types.SimpleNamespace()
    for node in graph.find_nodes(op="get_attr"):  # tensors that the graph itself holds, as an optimizer's does
        name = str(node.target).split(".")[0]
        setattr(scope, name, getattr(captured.gm, name))
    install(lambda stage, function: setattr(scope, f"{PREFIX}{stage.index}", function))
    _Mover(captured, stages, graph, scope, written).run()
    _begin_in_mode(captured.gm.graph, graph)
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<l2partition {len(stages)} stages>", "exec"), namespace)
    return types.MethodType(namespace["forward"], scope)


def _begin_in_mode(original: torch.fx.Graph, graph: torch.fx.Graph) -> None:
    """Let each stage begin in the grad mode in which it was compiled, and the call end in the original's last mode.

    A stage enters the mode of its nodes itself. What it does before, such as the copy of a value that it writes, is
    part of the gradient's path.

    Args:
        original: the graph of which ``graph`` calls the partitions; few set the grad mode, others need nothing.
    """
    setters = [node for node in original.nodes if sets_grad_mode(node)]
    if not setters:
        return
    calls = graph.find_nodes(op="call_module")
    for call in calls[1:]:
        with graph.inserting_before(call):
            graph.call_function(torch.set_grad_enabled, (torch.is_grad_enabled(),))
    with graph.inserting_before(graph.output_node()):
        graph.call_function(torch.set_grad_enabled, setters[-1].args)


class _Mover:
    """Writes copies between devices into the graph that calls the partitions, one for each value and device at most.

    Results go back to the devices that they have in the trace.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        stages: Sequence[Stage],
        graph: torch.fx.Graph,
        scope: types.SimpleNamespace,
        written: frozenset[str],
    ) -> None:
        self._graph, self._scope, self._stages = graph, scope, stages
        self._written = written
        self._weights = {node.name: tensor for node, tensor in captured.weights.items()}
        self._where: dict[torch.fx.Node, torch.device] = {}
        self._moved: dict[tuple[torch.fx.Node, torch.device], torch.fx.Node] = {}
        self._num_weights = 0

    def run(self) -> None:
        stage_of = {f"{PREFIX}{stage.index}": stage for stage in self._stages}
        for node in list(self._graph.nodes):
            if node.op == "call_module":
                self._bring_arguments(node, stage_of[str(node.target)])
            elif node.op == "output":
                for source in node.all_input_nodes:
                    if isinstance(value := value_of(source), torch.Tensor):
                        self._bring(source, node, value.device)

    def _bring_arguments(self, call: torch.fx.Node, stage: Stage) -> None:
        before = dict(zip(stage.partition.inputs, call.args, strict=True))
        for original, argument in before.items():
            if isinstance(argument, torch.fx.Node) and isinstance(value := value_of(original), torch.Tensor):
                self._bring(argument, call, stage.place(value))
        for user in list(call.users):
            if isinstance(value := value_of(user), torch.Tensor):
                self._where[user] = stage.place(value)
        for (original, argument), moved in zip(before.items(), call.args, strict=True):
            if original.name not in self._written:
                continue
            if moved is not argument:
                # The stage wrote into a copy on its own device: the caller's tensor must get what it wrote.
                with self._graph.inserting_after(call):
                    self._graph.call_method("copy_", (argument, moved))
            for source, device in list(self._moved):
                if source is argument and self._moved[source, device] is not moved:
                    del self._moved[source, device]  # this copy is older than the write

    def _bring(self, source: torch.fx.Node, user: torch.fx.Node, device: torch.device) -> None:
        if self._place(source) == device:
            return
        key = (source, device)
        if key not in self._moved:
            with self._graph.inserting_before(user):
                self._moved[key] = self._copy_of(source, device)
        user.replace_input_with(source, self._moved[key])

    def _copy_of(self, source: torch.fx.Node, device: torch.device) -> torch.fx.Node:
        tensor = self._weights.get(source.name)
        if tensor is None or source.name in self._written:  # the next stage must see what a stage writes
            with_host = "cpu" in (self._place(source).type, device.type)
            options: dict[str, Any] = {"copy": True} if with_host else {"copy": True, "non_blocking": True}
            node = self._graph.call_method("to", (source, device), options)
        else:
            name = self._new_name()
            setattr(self._scope, name, WeightOnDevice(tensor, device, STORE))
            node = self._graph.call_module(name, (source,))
        self._where[node] = device
        return node

    def _new_name(self) -> str:
        """Return a name that is free in the scope, which has the graph's own tensors under their names too."""
        self._num_weights += 1
        while hasattr(self._scope, name := f"weight_{self._num_weights}"):
            self._num_weights += 1
        return name

    def _place(self, node: torch.fx.Node) -> torch.device:
        """Return the device of a tensor; inputs and weights are where the trace has them."""
        device: torch.device = self._where[node] if node in self._where else value_of(node).device
        return device
