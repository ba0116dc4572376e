"""Describe the planner's numbers in names of the graph: partitions, oversize atoms, proofs."""

from __future__ import annotations

from collections.abc import Sequence

from ..constraints.atoms import Atoms
from ..footprint.graph_memory import GraphMemory, NodeMemory
from ..ordering.search import SearchStats
from ..partitioner.certificate import Certificate
from ..partitioner.chain import Chain
from ..partitioner.interval_footprint import interval, last_touches
from .records import Oversize, Partition, Proof, Witness
from .symbolic_peaks import add_up, find_peak_candidates


class PlanBuilder:
    """Makes the records of a plan from intervals of one chain.

    Args:
        memory: the graph's, in the order in which its steps run.
        atoms: the graph's atoms.
        chain: the chain that `lay_out` made of both.
    """

    def __init__(self, memory: GraphMemory, atoms: Atoms, chain: Chain) -> None:
        self._memory, self._starts, self._chain = memory, atoms.starts, chain
        self._last_touch = last_touches(chain)

    def partition(self, index: int, first_atom: int, end_atom: int, slot: int, budget: int) -> Partition:
        """Return partition number ``index`` of a plan, with the atoms [first_atom, end_atom)."""
        first, end = self._starts[first_atom], self._starts[end_atom]
        memory = self._memory
        held = interval(self._chain, first, end)
        state_bytes = sum(size for weight, size in held.weights if weight in memory.state)
        received, handed_on = self._crossing(first, end)
        resident = [(memory.values[v].name, int(self._chain.value_bytes[v])) for v in held.resident]
        steps = memory.steps[first:end]
        return Partition(
            index=index,
            slot=slot,
            device="",
            budget_bytes=budget,
            nodes=tuple(step.node for step in steps),
            first=steps[0].path or steps[0].node,
            last=steps[-1].path or steps[-1].node,
            weight_bytes=held.weight - state_bytes,
            state_bytes=state_bytes,
            activation_bytes=held.activation,
            workspace_bytes=held.workspace,
            own_bytes=held.own,
            total_bytes=held.total,
            spill_bytes=max(0, held.total - budget),
            peak_node=memory.steps[held.peak_step].node,
            resident=tuple(sorted(resident, key=lambda pair: (-pair[1], pair[0]))),
            recv_bytes=held.recv_bytes,
            send_bytes=held.send_bytes,
            inputs=received,
            outputs=handed_on,
            weight=memory.weight_size(first, end, state=False),
            state=memory.weight_size(first, end, state=True),
            moments=(
                (add_up(memory, first, end),)
                if self._chain.adds_up
                else find_peak_candidates(memory, self._last_touch, first, end, held.peak_step)
            ),
        )

    def _crossing(self, first: int, end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the values that steps [first, end) receive, and of those that they send or return."""
        values = self._memory.values
        touched = dict.fromkeys(v for step in self._memory.steps[first:end] for v in step.values)
        received = [v for v in touched if values[v].made_at < first]
        made = [v for v in touched if values[v].made_at >= first]
        handed_on = [v for v in made if values[v].returned or self._last_touch[v] >= end]
        return tuple(values[v].name for v in received), tuple(values[v].name for v in handed_on)

    def oversize(self, atom: int) -> Oversize:
        """Return the record of an atom that exceeds the budget by itself."""
        first, end = self._starts[atom], self._starts[atom + 1]
        held = interval(self._chain, first, end)
        values = self._memory.values
        inputs = sum(int(self._chain.value_bytes[v]) for v in held.resident if values[v].made_at < first)
        return Oversize(
            nodes=tuple(step.node for step in self._memory.steps[first:end]),
            weight_bytes=held.weight,
            input_bytes=inputs,
            output_bytes=held.activation - inputs,
            workspace_bytes=held.workspace,
            total_bytes=held.total,
        )

    def proof(self, certificate: Certificate, stats: SearchStats, traced: Sequence[NodeMemory]) -> Proof:
        """Return a certificate in names of the graph.

        Args:
            stats: of the search over orders.
            traced: the steps in trace order.
        """
        fewest, moment, before, behind = stats.bound or (0, None, 0, 0)
        return Proof(
            min_partitions=certificate.min_partitions,
            witnesses=tuple(map(self._witness, certificate.witnesses)),
            max_bytes_lower_bound=certificate.max_bytes_lower_bound,
            max_witnesses=tuple(map(self._witness, certificate.max_witnesses)),
            orders_tried=stats.searched,
            exhaustive=stats.exhaustive,
            fewest_over_all_orders=fewest,
            moment="" if moment is None else traced[moment].node,
            partitions_before=before,
            partitions_behind=behind,
        )

    def _witness(self, witness: tuple[int, int, int]) -> Witness:
        first, rejected, size = witness
        steps = self._memory.steps
        return Witness(steps[self._starts[first]].node, steps[self._starts[rejected + 1] - 1].node, size)
