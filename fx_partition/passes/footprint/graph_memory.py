"""The memory of a graph: the bytes that every node reads, writes, allocates and keeps, over the graph's symbols.

Terms
-----
step
    A node that runs: neither a placeholder, nor a ``get_attr``, nor the output, nor *free*.
free
    A node that costs nothing and may be repeated in every partition that needs it: a view of a weight (``w.t()``) if
    no tensor of the weight has its metadata changed; a Python scalar that Dynamo passes as a 0-d tensor
    (``eps.item()``); arithmetic on such scalars.
weight
    Bytes that exist before the graph runs: overlapping parts of one storage (tied and viewed parameters) are one.
state
    A weight in this sense that the graph writes: a KV cache that is passed in, a running mean.
value
    A storage that is made by a step or passed in by the caller, and is neither weight nor state.

Before (a Dynamo graph of ``F.relu_(F.linear(x, w)) + x``)::

    x, w = placeholders;  linear = F.linear(x, w);  relu_ = linear.relu_();  add = relu_ + x

After::

    weights: w (16 KiB);  values: x, linear, add
    steps:   linear (touches x, linear; reads w), relu_ (touches linear, writes it), add (touches linear, x, add)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy

from ..capture.symbolic_sizes import Size, Symbols, smallest, to_expr
from ..workspace.measured_scratch import Scratch


class Role(enum.Enum):
    INPUT = "input"
    ACTIVATION = "activation"


@dataclass
class ActivationStorage:
    """A value: its name, its bytes, the step that makes it (-1: the caller), and whether the graph returns it."""

    name: str
    bytes: Size
    role: Role
    made_at: int
    returned: bool = False


@dataclass
class NodeMemory:
    """The memory of one step.

    Attributes:
        node: the node's name in the graph.
        path: the module that the node comes from, ``"encoder.layer.0.attention"``, or "".
        values: the values that the step touches (makes, reads or writes), each once.
        weights: the bytes that the step touches of each weight, ``{weight: bytes}``: all, the rows that a gather reads,
            or the sum of the views that it reads (overlapping views may exceed the weight; `weight_size` limits them).
        given: the weights that are among the step's operands, whether it reads them (``mul``) or not (``zeros_like``).
        workspace: bytes that the step allocates beyond its outputs, at each moment that can be the peak.
        scratch: the same with the kernels that are to be measured; None if there are none.
        estimated: operators inside whose memory depends on the processor and was not measured (see `measured_scratch`).
        writes: values that the step writes after they were made; a change of a tensor's metadata is a write.
        weight_writes: weights that the step writes.
        reshapes, weight_reshapes: those of them that have a tensor whose metadata it changes (see `metadata_changes`).
        unknown: operators inside without a workspace rule.
        draws: whether the step was seen to draw random numbers.
    """

    node: str
    path: str
    values: tuple[int, ...] = ()
    weights: dict[int, Size] = field(default_factory=dict)
    given: tuple[int, ...] = ()
    workspace: tuple[Size, ...] = (0,)
    scratch: Scratch | None = None
    estimated: tuple[str, ...] = ()
    writes: frozenset[int] = frozenset()
    weight_writes: frozenset[int] = frozenset()
    reshapes: frozenset[int] = frozenset()
    weight_reshapes: frozenset[int] = frozenset()
    unknown: tuple[str, ...] = ()
    draws: bool = False

    def measured_at(self, numbers: Mapping[sympy.Symbol, int]) -> NodeMemory:
        """Return this step with the workspace of this machine's kernels, measured at these sizes."""
        if self.scratch is None:
            return self
        workspace, estimated = self.scratch.at(numbers)
        return replace(self, workspace=workspace, estimated=estimated)


@dataclass
class GraphMemory:
    """All that the planner and the report know of a graph's memory.

    Attributes:
        steps: the steps in execution order.
        values: the values; steps refer to them by number.
        weight_bytes, weight_names: the bytes and the name of each weight.
        weight_of: for each placeholder and ``get_attr`` that holds a weight, by name, the weight's number.
        state: the weights that the graph writes and that are not parameters.
        symbols: the shape symbols.
        holds: for each node, by name, the values in which the tensors of its result are; nodes without any are absent.
        measured_for: the sizes at which kernels were measured; None if they were not.
    """

    steps: list[NodeMemory]
    values: list[ActivationStorage]
    weight_bytes: list[Size]
    weight_names: list[str]
    weight_of: dict[str, int]
    state: frozenset[int]
    symbols: Symbols
    holds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    measured_for: Mapping[sympy.Symbol, int] | None = None

    def measured_at(self, numbers: Mapping[sympy.Symbol, int]) -> GraphMemory:
        """Return the same memory with the workspace of this machine's kernels, measured at these sizes."""
        if self.measured_for == numbers:
            return self
        return replace(self, steps=[step.measured_at(numbers) for step in self.steps], measured_for=dict(numbers))

    def reordered(self, order: Sequence[int]) -> GraphMemory:
        """Return the same memory with step ``order[i]`` at place i."""
        place = {old: new for new, old in enumerate(order)}
        values = [replace(v, made_at=place.get(v.made_at, -1)) for v in self.values]
        return replace(self, steps=[self.steps[t] for t in order], values=values)

    @property
    def written(self) -> frozenset[str]:
        """Return the names of the placeholders and ``get_attr`` nodes whose tensors the graph writes."""
        numbers = {weight for step in self.steps for weight in step.weight_writes}
        return frozenset(name for name, number in self.weight_of.items() if number in numbers)

    def weight_size(self, first: int, end: int, *, state: bool) -> Size:
        """Return the bytes of weights (or of state) that steps [first, end) touch; none counts more than once."""
        touched: dict[int, Size] = {}
        whole: set[int] = set()
        for step in self.steps[first:end]:
            for weight, size in step.weights.items():
                if (weight in self.state) is not state or weight in whole:
                    continue
                if size == self.weight_bytes[weight]:
                    whole.add(weight)
                touched[weight] = size if weight in whole else touched.get(weight, 0) + size
        total: Size = 0
        for weight, size in touched.items():
            total = total + (size if weight in whole else smallest(self.weight_bytes[weight], size))
        return to_expr(total)
