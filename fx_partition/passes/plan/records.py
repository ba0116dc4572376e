"""The records of a plan: partitions and the steps that can be their peaks, the proof, and oversize atoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from ..capture.size_text import to_text
from ..capture.symbolic_sizes import Size, evaluate


@dataclass(frozen=True)
class PeakCandidate:
    """A step that can be a partition's peak: the bytes resident and allocated there, symbolic."""

    node: str
    activation: Size
    workspace: Size


@dataclass(frozen=True)
class Partition:
    """A contiguous run of nodes; every ``*_bytes`` is a number of bytes under the plan's binding.

    Attributes:
        index: its position in the plan, from 0.
        slot: the number of its device, devices that are left out included; where devices take turns, round r adds r
            times their number.
        device: the device to run on, or "" where no devices were named.
        budget_bytes: usable on-chip bytes of that device.
        nodes: names of its nodes, in the order in which they run.
        first, last: module path (else name) of its first and last node.
        weight_bytes: weights that it reads, without state.
        state_bytes: inputs and buffers that it writes (a KV cache).
        activation_bytes, workspace_bytes: values resident and scratch memory allocated at its peak step.
        own_bytes: the most that it allocates itself at one time: results and workspace, without received values.
        total_bytes: its footprint, weight + state + activation + workspace.
        spill_bytes: the part of the footprint above the budget of its device.
        peak_node: the step at which it holds the most bytes.
        resident: (value, bytes) at that step, largest first.
        recv_bytes: distinct tensors that it receives from other partitions.
        send_bytes: distinct tensors that it makes and other partitions receive.
        inputs, outputs: names of the values that it receives (graph inputs too) and sends or returns.
        weight, state: symbolic bytes of both.
        moments: the steps that can be its peak for some binding.
        replicas: the numbers of further devices that hold a copy of it.
        allocated_bytes: ``own_bytes`` as measured when the compiled stage ran; None if it was not measured.
        code: the first partition whose compiled code it shares, or its own index; None until compiled.
    """

    index: int
    slot: int
    device: str
    budget_bytes: int
    nodes: tuple[str, ...]
    first: str
    last: str
    weight_bytes: int
    state_bytes: int
    activation_bytes: int
    workspace_bytes: int
    own_bytes: int
    total_bytes: int
    spill_bytes: int
    peak_node: str
    resident: tuple[tuple[str, int], ...]
    recv_bytes: int
    send_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: Size
    state: Size
    moments: tuple[PeakCandidate, ...]
    replicas: tuple[int, ...] = ()
    allocated_bytes: int | None = None
    code: int | None = None

    def footprint(self, numbers: Mapping[sympy.Symbol, int]) -> int:
        """Return its bytes under another binding."""
        return evaluate(self.weight, numbers) + evaluate(self.state, numbers) + self.peak(numbers)

    @property
    def varies(self) -> bool:
        """Whether its footprint goes with the sizes of the inputs."""
        sizes = (self.weight, self.state, *(size for m in self.moments for size in (m.activation, m.workspace)))
        return any(isinstance(size, sympy.Expr) and bool(size.free_symbols) for size in sizes)

    def peak(self, numbers: Mapping[sympy.Symbol, int]) -> int:
        """Return the bytes of activations and workspace at its peak under another binding."""
        return max(evaluate(m.activation, numbers) + evaluate(m.workspace, numbers) for m in self.moments)

    @property
    def total_text(self) -> str:
        """The symbolic footprint as text; the maximum is not built in sympy, which would take long."""
        totals = [to_text(self.weight + self.state + m.activation + m.workspace) for m in self.moments]
        distinct = list(dict.fromkeys(totals))
        return distinct[0] if len(distinct) == 1 else f"Max({', '.join(distinct)})"


@dataclass(frozen=True)
class Witness:
    """A run of nodes, ``first`` to ``rejected``, that holds ``bytes``: too many for one partition."""

    first: str
    rejected: str
    bytes: int


@dataclass(frozen=True)
class Proof:
    """The proof that a plan is best (see `certificate`), in names of the graph and for the order in which it runs.

    A plan with ``footprint="fused"`` has no proof: there are no witnesses, and nothing is claimed.

    Attributes:
        min_partitions, witnesses: no plan has fewer partitions; no boundary can cut two witnesses.
        max_bytes_lower_bound, max_witnesses: no plan with as many partitions has a smaller maximum.
        orders_tried: the number of topological orders (or of sets of nodes that may come first) that were searched; 1
            means trace order only.
        exhaustive: whether the search rules out a better plan in any topological order.
        fewest_over_all_orders: no topological order has a plan of fewer partitions, as `check_order_bound` can check;
            0 where nothing is claimed.
        moment: the node behind which, in trace order, the live values prove this together with the weights; "" where
            the weights alone prove it.
    """

    min_partitions: int
    witnesses: tuple[Witness, ...]
    max_bytes_lower_bound: int
    max_witnesses: tuple[Witness, ...]
    orders_tried: int = 1
    exhaustive: bool = False
    fewest_over_all_orders: int = 0
    moment: str = ""
    partitions_before: int = 0
    partitions_behind: int = 0


@dataclass(frozen=True)
class Oversize:
    """An atom that exceeds the budget by itself, with its parts; ``why_whole``: the reason why it was not sliced."""

    nodes: tuple[str, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    workspace_bytes: int
    total_bytes: int
    why_whole: str = ""
