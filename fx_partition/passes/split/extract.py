"""Cut a graph at the boundaries of a plan: the result is a module whose children are the partitions.

Before::

    def forward(self, x):
        weight = self.up.weight; weight_1 = self.down.weight
        linear = F.linear(x, weight); relu = torch.relu(linear); add = relu + x
        return F.linear(add, weight_1)

After (boundary behind relu)::

    def forward(self, x):
        refuse_other_sizes([x], '[["x", [4, 16]]]', '{}')        # where a tracer has specialized the graph
        weight = self.up.weight; weight_1 = self.down.weight
        partition_0 = self.partition_0(x, weight);        relu = partition_0[0]
        partition_1 = self.partition_1(relu, x, weight_1); linear_1 = partition_1[0]
        return linear_1

Values go straight from the partition that makes them to each that uses them. Parameters stay in the model, so that
``state_dict()`` has the original's keys, and are inputs of partitions, so that equal partitions have equal code. Free
nodes (views of weights, scalars) are repeated in every partition that needs them.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PlanMismatchError

from ..capture.autocast_regions import Regions, is_region_handle
from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import symbols_in
from ..capture.graph_hash import fingerprint
from ..capture.whole_regions import inside_whole_regions
from ..plan.plan import Plan
from ..slicing.rewrite import apply_slicings
from .input_sizes import write_check
from .split_module import PREFIX, PartitionModule, SplitModule, assemble, refuse_taken_names


@dataclass(frozen=True)
class PartitionGraph:
    """A partition cut out of its graph.

    Attributes:
        module: its graph, which returns a tuple.
        inputs: the nodes of the original graph that are its placeholders, in order.
        outputs: the nodes of the original graph that it returns, in order.
    """

    module: PartitionModule
    inputs: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]


def planned_graph(captured: CapturedGraph, plan: Plan) -> CapturedGraph:
    """Return the graph that a plan cuts: the captured graph with the plan's slicings applied.

    Raises:
        PlanMismatchError: the plan was made for another graph.
    """
    found = fingerprint(captured.gm.graph)
    if plan.graph != found:
        raise PlanMismatchError(
            f"this plan was made for another graph (its fingerprint is {plan.graph}, this graph's is {found}); "
            f"make one with fx_partition.plan(...)"
        )
    return apply_slicings(captured, plan.slicings)


def cut(captured: CapturedGraph, plan: Plan) -> list[PartitionGraph]:
    """Return the partitions of a planned graph, their inputs and outputs as nodes of that graph; linear in nodes."""
    by_name = {node.name: node for node in captured.gm.graph.nodes}
    owner = {by_name[name]: p.index for p in plan.partitions for name in p.nodes}
    symbols = captured.symbol_inputs
    whole = inside_whole_regions(captured.gm.graph)
    regions = Regions()
    partition_graphs = []
    for partition in plan.partitions:
        cutter = _Cutter(captured, owner, symbols, whole, partition.index)
        # `regions` carries the modes that are on from one partition to the next, which enters them again.
        partition_graphs.append(cutter.run([by_name[name] for name in partition.nodes], regions))
    return partition_graphs


class _Cutter:
    """Writes the graph of one partition."""

    def __init__(
        self,
        captured: CapturedGraph,
        owner: Mapping[torch.fx.Node, int],
        symbols: Mapping[str, torch.fx.Node],
        whole: Mapping[torch.fx.Node, torch.fx.Node],
        index: int,
    ) -> None:
        self._gm, self._weights, self._values = captured.gm, captured.weights, captured.values
        self._owner, self._symbols, self._whole, self._index = owner, symbols, whole, index
        self._graph = torch.fx.Graph()
        self._copy: dict[torch.fx.Node, torch.fx.Node] = {}
        self._inputs: list[torch.fx.Node] = []
        self._modules: dict[str, torch.nn.Module] = {}

    def run(self, nodes: list[torch.fx.Node], regions: Regions) -> PartitionGraph:
        self._find_inputs(nodes, regions)
        for node in self._inputs:
            self._copy[node] = self._placeholder(node)
        self._copy |= regions.enter(self._graph)
        for node in nodes:
            if self._whole.get(node) is node:
                self._bring_for(inside for inside in nodes if self._whole.get(inside) is node)
            self._copy[node] = self._write(node)
            regions.pass_node(node)
        regions.leave(self._graph, self._copy)
        outputs = tuple(node for node in nodes if self._is_needed_elsewhere(node))
        self._graph.output(tuple(self._copy[node] for node in outputs))
        module = PartitionModule(self._modules, self._graph, class_name=f"Partition{self._index}")
        return PartitionGraph(module, tuple(self._inputs), outputs)

    def _find_inputs(self, nodes: list[torch.fx.Node], regions: Regions) -> None:
        """Collect the inputs: sizes, then activations in the order of first use, then weights.

        A compiler of the partition needs an input for every symbol that occurs in a shape, even an unused one.
        """
        found: dict[torch.fx.Node, None] = {}
        stack = [source for node in reversed(nodes) for source in reversed(node.all_input_nodes)]
        seen = set(regions.open)  # modes are entered again here, so their handles are not inputs
        while stack:
            node = stack.pop()
            if node in seen or self._owner.get(node) == self._index:
                continue
            seen.add(node)
            if node in self._owner or node.op == "placeholder" or node in self._weights:
                found[node] = None
            else:  # a free node is repeated here, so its inputs are needed instead
                stack += reversed(node.all_input_nodes)
        sizes = dict.fromkeys(self._symbols[name] for name in self._symbols_in([*found, *nodes]))
        order = [*sizes, *(n for n in found if n not in self._weights), *(n for n in found if n in self._weights)]
        self._inputs = list(dict.fromkeys(order))

    def _symbols_in(self, nodes: list[torch.fx.Node]) -> list[str]:
        if not self._symbols:
            return []
        names = {
            symbol.name
            for node in nodes
            for leaf in pytree.tree_leaves(self._values.get(node))
            for size in (leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,))
            if isinstance(size, torch.SymInt)
            for symbol in symbols_in(size)
        }
        return sorted(names & self._symbols.keys())

    def _placeholder(self, node: torch.fx.Node) -> torch.fx.Node:
        copy = self._graph.placeholder(node.name, type_expr=node.type)
        copy.meta = dict(node.meta)
        return copy

    def _write(self, node: torch.fx.Node) -> torch.fx.Node:
        for source in node.all_input_nodes:
            self._bring(source)
        if node.op in ("call_module", "get_attr"):
            self._modules[str(node.target)] = operator.attrgetter(str(node.target))(self._gm)
        return self._graph.node_copy(node, lambda n: self._copy[n])

    def _bring_for(self, nodes: Iterable[torch.fx.Node]) -> None:
        """Repeat the free nodes that a region needs before it begins: inside, its mode would apply to them."""
        for node in nodes:
            for source in node.all_input_nodes:
                if source not in self._whole and self._owner.get(source) is None:
                    self._bring(source)

    def _bring(self, node: torch.fx.Node) -> None:
        """Repeat a free node here, after the free nodes that it is computed from."""
        stack = [node]
        while stack:
            wanted = stack[-1]
            missing = [source for source in wanted.all_input_nodes if source not in self._copy]
            if wanted in self._copy or not missing:
                stack.pop()
                if wanted not in self._copy:
                    self._copy[wanted] = self._write(wanted)
            else:
                stack += missing

    def _is_needed_elsewhere(self, node: torch.fx.Node) -> bool:
        return not is_region_handle(node) and any(self._owner.get(user) != self._index for user in node.users)


def split_graph(captured: CapturedGraph, plan: Plan) -> SplitModule:
    """Return the split module of a captured graph, as the module's docstring shows; the original is not changed.

    Raises:
        PlanMismatchError: the plan was made for another graph.
        PartitionError: the model has a member with a name that the split module needs.
    """
    return split_planned(planned_graph(captured, plan), plan)


def split_planned(captured: CapturedGraph, plan: Plan) -> SplitModule:
    """Return the split module of a graph that `planned_graph` returned; see `split_graph`."""
    refuse_taken_names(captured.gm, plan.num_partitions)
    partition_graphs = cut(captured, plan)
    graph = stitch(captured.gm.graph, partition_graphs)
    write_check(graph, captured, plan)
    return assemble(captured.gm, graph, [partition_graph.module for partition_graph in partition_graphs], plan)


def stitch(original: torch.fx.Graph, partition_graphs: list[PartitionGraph]) -> torch.fx.Graph:
    """Return the graph that calls the partitions, with the original's inputs, outputs and pytrees."""
    graph = copy.deepcopy(original)  # with its codegen, which knows the pytrees
    twin = dict(zip(original.nodes, graph.nodes, strict=True))
    output = next(iter(reversed(graph.nodes)))
    made: dict[torch.fx.Node, torch.fx.Node] = {}
    kept: set[torch.fx.Node] = set()
    with graph.inserting_before(output):
        for index, partition_graph in enumerate(partition_graphs):
            inputs = tuple(made.get(node, twin[node]) for node in partition_graph.inputs)
            call = graph.call_module(f"{PREFIX}{index}", inputs)
            kept.add(call)
            for i, node in enumerate(partition_graph.outputs):
                made[node] = graph.create_node("call_function", operator.getitem, (call, i), name=node.name)
                made[node].meta = dict(node.meta)
    for node, getitem in made.items():
        output.replace_input_with(twin[node], getitem)
    kept |= set(made.values())
    # From the end: a node that only erased nodes used has no users left when it is reached.
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output") or node in kept:
            continue
        if not node.users or node.op == "call_module":
            graph.erase_node(node)
    return graph
