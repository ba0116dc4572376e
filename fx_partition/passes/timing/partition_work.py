"""Find what a partition does in one run: the tensors that it touches, in order, and its floating-point operations.

Terms
-----
read
    A touch of a weight, of a value that another step made, or of what a step has written to its scratch memory.
write
    A touch of a value at the step that makes it, or of the scratch memory of a step.
arrive
    The first touch of a value that the caller passes in: it is new in every run.
leave
    The touch of a returned value at the step that makes it: the caller takes it.

The steps are those of compiled code (see `inductor.fused_footprint`): values that pass between fused pointwise
operators are not touched.
launch
    A kernel that inductor launches: an external one, or a loop with all that is fused into it. It counts at the step
    that begins it, so the launches of a run of steps are a sum.

Before (a partition of ``linear(x).relu()``, 8 rows of 256 floats)::

    x, weight: placeholders;  linear = linear(x, weight);  relu = linear.relu()

After::

    arrive x 8 KiB;  read weight 256 KiB;  write relu 8 KiB;  leave relu;  1,048,576 operations, 2 launches
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import sympy

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Evaluator, Size
from ..footprint.flops import flops_by_node
from ..footprint.graph_memory import GraphMemory, Role
from ..inductor.fused_footprint import compiled

Key = tuple[str, int]


class AccessKind(enum.Enum):
    WEIGHT = "weight"
    READ = "read"
    WRITE = "write"
    ARRIVE = "arrive"
    LEAVE = "leave"


class Access(NamedTuple):
    """One touch of a tensor.

    Attributes:
        key: identifies the tensor; equal keys are the same memory.
        bytes: the bytes that are touched.
        how: the kind of touch, by the module's terms; WEIGHT is a read of a weight.
    """

    key: Key
    bytes: int
    how: AccessKind


@dataclass(frozen=True)
class PartitionWork:
    """The work of one run of a partition.

    Attributes:
        accesses: the touches, in the order in which they happen.
        received: the values that other partitions made, as a hop brings them.
        flops: floating-point operations of matrix products, convolutions and attention.
        kernels: the number of steps that write a result of their own.
        launches: the number of kernels that inductor launches.
    """

    accesses: tuple[Access, ...]
    received: frozenset[Key]
    flops: int
    kernels: int
    launches: int

    @property
    def bytes(self) -> int:
        """The bytes that it reads and writes, on chip or off."""
        return sum(access.bytes for access in self.accesses)

    @property
    def received_bytes(self) -> int:
        """The bytes of the distinct values that a hop brings."""
        return sum({access.key: access.bytes for access in self.accesses if access.key in self.received}.values())

    @property
    def arriving_bytes(self) -> int:
        """The bytes that the caller passes in."""
        return self._of(AccessKind.ARRIVE)

    @property
    def leaving_bytes(self) -> int:
        """The bytes that the caller takes."""
        return self._of(AccessKind.LEAVE)

    def _of(self, how: AccessKind) -> int:
        return sum(access.bytes for access in self.accesses if access.how is how)


def work_of_runs(
    captured: CapturedGraph,
    ordered: GraphMemory,
    cuts: Sequence[int],
    starts: Sequence[int],
    numbers: Mapping[sympy.Symbol, int],
) -> list[PartitionWork]:
    """Return the work of each run of steps; kernels fuse across runs, but not across the boundaries of partitions.

    Args:
        captured: the graph.
        ordered: its memory as eager runs it, in the order in which it runs.
        cuts: the first step of each partition, ascending from 0.
        starts: the first step of each run (of each atom, for example), then the number of steps.
        numbers: the value of each symbol.
    """
    memory, launches = compiled(captured, ordered, cuts)
    makes = {value.made_at for value in ordered.values if value.bytes != 0}
    return _Works(memory, makes, launches, flops_by_node(captured, memory.symbols), numbers).of(starts)


class _Works:
    """Computes the work of runs of one graph.

    Args:
        memory: the graph's memory under inductor.
        makes: the steps that make a value when operators are not fused.
        launches: for each step the number of kernels that it begins.
        flops: by node; numbers: the value of each symbol.
    """

    def __init__(
        self,
        memory: GraphMemory,
        makes: set[int],
        launches: Sequence[int],
        flops: Mapping[str, Size],
        numbers: Mapping[sympy.Symbol, int],
    ) -> None:
        self._memory, self._makes, self._launches = memory, makes, launches
        sizes: list[Size] = [value.bytes for value in memory.values]
        sizes += [flops.get(step.node, 0) for step in memory.steps]
        for step in memory.steps:
            sizes += [*step.weights.values(), *step.workspace]
        found = iter(Evaluator(sizes)(numbers))
        self._values = [next(found) for _ in memory.values]
        self._flops = [next(found) for _ in memory.steps]
        self._weights = []
        self._scratch = []
        for step in memory.steps:
            self._weights.append({weight: next(found) for weight in step.weights})
            self._scratch.append(max(0, *(next(found) for _ in step.workspace)))

    def of(self, starts: Sequence[int]) -> list[PartitionWork]:
        return [self._work(i, first, end) for i, (first, end) in enumerate(pairwise(starts))]

    def _work(self, index: int, first: int, end: int) -> PartitionWork:
        accesses: list[Access] = []
        received: set[Key] = set()
        arrived: set[int] = set()
        kernels = 0
        for t in range(first, end):
            step = self._memory.steps[t]
            accesses += (Access(("weight", w), size, AccessKind.WEIGHT) for w, size in self._weights[t].items())
            made = [v for v in step.values if self._memory.values[v].made_at == t]
            if made and not any(self._values[v] for v in made):
                continue  # inside of a kernel, whose last step touches what this one does
            kernels += t in self._makes
            for v in step.values:
                value = self._memory.values[v]
                if value.made_at == t:
                    continue
                fresh = value.role is Role.INPUT and v not in arrived
                arrived.add(v)
                accesses.append(Access(("value", v), self._values[v], AccessKind.ARRIVE if fresh else AccessKind.READ))
                if value.role is not Role.INPUT and value.made_at < first:
                    received.add(("value", v))
            if self._scratch[t]:
                accesses += (
                    Access(("scratch", index), self._scratch[t], how) for how in (AccessKind.WRITE, AccessKind.READ)
                )
            for v in made:
                accesses.append(Access(("value", v), self._values[v], AccessKind.WRITE))
                if self._memory.values[v].returned:
                    accesses.append(Access(("value", v), self._values[v], AccessKind.LEAVE))
        kept = tuple(access for access in accesses if access.bytes)
        flops, launches = sum(self._flops[first:end]), sum(self._launches[first:end])
        return PartitionWork(kept, frozenset(received), flops, kernels, launches)
