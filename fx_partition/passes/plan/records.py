"""What a plan is made of: partitions and the steps at which they are fullest, the proof, and what fits nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from ..capture.size_text import to_text
from ..capture.symbolic_sizes import Size, evaluate


@dataclass(frozen=True)
class PeakCandidate:
    """A step at which a partition can be fullest: bytes resident and allocated there, symbolic."""

    node: str
    activation: Size
    workspace: Size


@dataclass(frozen=True)
class Partition:
    """One contiguous run of nodes; every ``*_bytes`` is a number of bytes under the plan's binding.

    Attributes:
        index: its place in the plan, from 0.
        slot: the place of its device among the devices, counted on through rounds where they take turns; devices that
            are left out count.
        device: where it is to run, or "" where no devices were named.
        budget_bytes: usable on-chip bytes of that device.
        nodes: names of its nodes, in the order in which they run.
        first, last: module path (else name) of its first and last node.
        weight_bytes: weights that it reads, without state.
        state_bytes: inputs and buffers that it writes (a KV cache).
        activation_bytes, workspace_bytes: what is resident and allocated at its peak step.
        own_bytes: the most that it allocates itself at one time: results and workspace, without what it receives.
        total_bytes: weight + state + activation + workspace: its footprint.
        spill_bytes: what of that exceeds the budget of its device.
        peak_node: the step at which it is fullest.
        resident: (value, bytes) at that step, largest first.
        recv_bytes: distinct tensors that it takes from other partitions.
        send_bytes: distinct tensors that it makes and others take.
        inputs, outputs: names of the values that it receives (graph inputs too) and hands on or returns.
        weight, state: symbolic bytes of both.
        moments: the steps that can be its peak for some binding.
        replicas: places of further devices that hold a copy of it.
        allocated_bytes: what ``own_bytes`` was when the compiled stage ran; None if that was not measured.
        code: the first partition whose compiled code it shares, itself where that is its own; None until compiled.
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
        """Its bytes under another binding."""
        return evaluate(self.weight, numbers) + evaluate(self.state, numbers) + self.peak(numbers)

    def peak(self, numbers: Mapping[sympy.Symbol, int]) -> int:
        """What of that is activations and workspace."""
        return max(evaluate(m.activation, numbers) + evaluate(m.workspace, numbers) for m in self.moments)

    @property
    def total_text(self) -> str:
        """The symbolic footprint, as text: the maximum stays unevaluated, as it would take sympy long to build."""
        totals = [to_text(self.weight + self.state + m.activation + m.workspace) for m in self.moments]
        distinct = list(dict.fromkeys(totals))
        return distinct[0] if len(distinct) == 1 else f"Max({', '.join(distinct)})"


@dataclass(frozen=True)
class Witness:
    """Nodes ``first`` to ``rejected`` hold ``bytes`` together: too many for one partition."""

    first: str
    rejected: str
    bytes: int


@dataclass(frozen=True)
class Proof:
    """Why a plan is best (see `certificate`), in the names of the graph; about the order in which the plan runs.

    A plan with ``footprint="fused"`` has no proof: there are no witnesses, and nothing is claimed.

    Attributes:
        min_partitions, witnesses: no plan has fewer partitions; no boundary can cut two witnesses.
        max_bytes_lower_bound, max_witnesses: no plan of as many partitions has a smaller maximum.
        orders_tried: how many topological orders (or sets of nodes that may come first) were searched; 1 means trace
            order alone.
        exhaustive: whether no topological order at all has a better plan.
        fewest_over_all_orders: no topological order has a plan of fewer partitions, as `check_order_bound` can check;
            0 where nothing is claimed.
        moment: the node behind which, in the order of the trace, so much is live that this is so; "" where the weights
            alone say it.
        partitions_before, partitions_behind: so many of these partitions run before, and behind, the atoms of which
            that is said (`order_ends`); 0 where it is said of all.
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
    """An atom that exceeds the budget by itself, and of what it is made; ``why_whole``: why it was not sliced."""

    nodes: tuple[str, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    workspace_bytes: int
    total_bytes: int
    why_whole: str = ""
