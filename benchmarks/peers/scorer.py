"""Score the assignment of any planner: the bytes of each partition, from the definitions alone.

Nothing here is shared with the planner of fx_partition, so that the two can check one another. `storages` says what
weights and values are.

Terms
-----
assignment
    ``{node name: partition}``, in execution order. Nodes that are not named (inputs, parameters, views of parameters)
    are wherever they are needed.
footprint
    Of one partition: its weights, each once (of a view what it shows, of a gather the rows it reads, up to the whole) +
    the most, over its nodes, of the values resident there + the node's workspace. A value that the partition touches is
    resident from its maker (from the first node, if made elsewhere) to its last touch, or to the last node if a
    partition that runs later touches it or the graph returns it.
cut
    Over the partitions, the bytes of the distinct values that each touches and another one makes.
back edge
    A node and a partition that needs its result although it runs before it: the assignment cannot be run.

Partitions run in the order of their first nodes where the graph allows it; where it does not but another order of the
partitions is possible, in that one (a partition need not be a contiguous run of nodes).

Before: ``linear -> relu -> linear_1`` and ``{"linear": 0, "relu": 0, "linear_1": 1}``.
After:  ``Score(footprints=(w + x + linear + relu, w_1 + relu + linear_1), cut_bytes=relu, back_edges=0)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.fx

from .storages import Storages


@dataclass(frozen=True)
class Score:
    """The figures of an assignment.

    Attributes:
        footprints: bytes of each partition, in the order in which they run.
        cut_bytes: bytes received over all partitions.
        back_edges: how many results are needed before they are made; 0 for an assignment that can be run.
    """

    footprints: tuple[int, ...]
    cut_bytes: int
    back_edges: int

    @property
    def num_partitions(self) -> int:
        return len(self.footprints)

    @property
    def max_bytes(self) -> int:
        return max(self.footprints)

    @property
    def key(self) -> tuple[int, int, int]:
        """The figures to minimise: partitions, then the largest of them, then the cut."""
        return self.num_partitions, self.max_bytes, self.cut_bytes

    def fits(self, budget: int) -> bool:
        """Return whether the assignment can run with every partition within ``budget`` bytes."""
        return self.back_edges == 0 and self.max_bytes <= budget


class Scorer:
    """Reads a graph once, then scores any number of assignments of its nodes.

    Args:
        gm: a graph from torch.export, of static shapes, its parameters as ``get_attr``.
        workspace: bytes that a node allocates and frees while it runs, by its name; those that are missing take none.

    Example::

        >>> scorer = Scorer(gm, workspace)                                   # doctest: +SKIP
        >>> scorer.score({"linear": 0, "relu": 0, "linear_1": 1}).fits(6 << 20)  # doctest: +SKIP
        True
    """

    def __init__(self, gm: torch.fx.GraphModule, workspace: Mapping[str, int]) -> None:
        self._workspace = workspace
        self._nodes = {node.name: node for node in gm.graph.nodes}
        self._storages = Storages(gm)

    def score(self, assignment: Mapping[str, int]) -> Score:
        """Return the footprints, the cut and the back edges of an assignment.

        Raises:
            KeyError: it names a node that the graph does not have.
        """
        runs: dict[int, list[str]] = {}
        for name, partition in assignment.items():
            if self._nodes[name].op.startswith("call_"):
                runs.setdefault(partition, []).append(name)
        needs = self._needs(assignment)
        order = _run_order(runs, needs)
        rank = {partition: place for place, partition in enumerate(order)}
        last_rank: dict[int, int] = {}
        for partition, names in runs.items():
            for name in names:
                for value in self._storages.touches[name].values:
                    last_rank[value] = max(rank[partition], last_rank.get(value, 0))
        footprints, cut = [], 0
        for partition in order:
            names = runs[partition]
            later = {v for v, last in last_rank.items() if last > rank[partition]} | self._storages.returned
            footprint, received = self._run(names, later)
            footprints.append(footprint)
            cut += received
        back_edges = sum(rank[source] > rank[reader] for source, reader, _ in needs)
        return Score(tuple(footprints), cut, back_edges)

    def _needs(self, assignment: Mapping[str, int]) -> set[tuple[int, int, str]]:
        """Return (maker's partition, reader's partition, node) for each result that crosses; weights do not."""
        found = set()
        for name, partition in assignment.items():
            for source in self._nodes[name].all_input_nodes:
                there = assignment.get(source.name, partition)
                if there != partition and not self._storages.holds_only_weights(source):
                    found.add((there, partition, source.name))
        return found

    def _run(self, names: Sequence[str], later: set[int]) -> tuple[int, int]:
        """Return the footprint and the received bytes of one partition whose nodes are ``names``."""
        place = {name: i for i, name in enumerate(names)}
        last_touch: dict[int, int] = {}
        weights: dict[int, int] = {}
        for i, name in enumerate(names):
            last_touch.update(dict.fromkeys(self._storages.touches[name].values, i))
            for weight, size in self._storages.touches[name].weights.items():
                weights[weight] = min(self._storages.weight_bytes[weight], weights.get(weight, 0) + size)
        arrives: dict[int, int] = {}
        leaves: dict[int, int] = {}
        received = 0
        for value, last in last_touch.items():
            size = self._storages.value_bytes[value]
            maker = self._storages.maker.get(value)
            first = place.get(maker, 0) if maker is not None else 0
            end = len(names) - 1 if value in later else last
            arrives[first] = arrives.get(first, 0) + size
            leaves[end] = leaves.get(end, 0) + size
            if maker is not None and maker not in place:
                received += size
        most = resident = 0
        for i, name in enumerate(names):
            resident += arrives.get(i, 0)
            most = max(most, resident + self._workspace.get(name, 0))
            resident -= leaves.get(i, 0)
        return sum(weights.values()) + most, received


def _run_order(runs: Mapping[int, object], needs: set[tuple[int, int, str]]) -> list[int]:
    """First appearance first, but after what a partition needs; where partitions need one another, first appearance."""
    sources: dict[int, set[int]] = {partition: set() for partition in runs}
    for source, reader, _ in needs:
        sources[reader].add(source)
    order: list[int] = []
    waiting = list(runs)
    while waiting:
        done = set(order)
        ready = next((p for p in waiting if sources[p] <= done), waiting[0])
        waiting.remove(ready)
        order.append(ready)
    return order
