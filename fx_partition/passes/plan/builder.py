"""Puts the planner's numbers into the names of the graph: partitions, oversize atoms, proofs."""

from __future__ import annotations

from collections.abc import Sequence

from ..constraints.atoms import Atoms
from ..footprint.graph_memory import GraphMemory, NodeMemory
from ..ordering.search import SearchStats
from ..partitioner.certificate import Certificate
from ..partitioner.chain import Chain
from ..partitioner.sliding_window import interval, last_touches
from .records import Oversize, Partition, Proof, Witness
from .symbolic_peaks import add_up, find_moments


class PlanBuilder:
    """Describes intervals of one chain.

    Args:
        facts: of the graph, in the order in which its steps run.
        atoms: of the graph.
        chain: laid out from both.
    """

    def __init__(self, facts: GraphMemory, atoms: Atoms, chain: Chain) -> None:
        self._facts, self._starts, self._chain = facts, atoms.starts, chain
        self._last_touch = last_touches(chain)

    def partition(self, index: int, first_atom: int, end_atom: int, slot: int, budget: int) -> Partition:
        first, end = self._starts[first_atom], self._starts[end_atom]
        facts = self._facts
        held = interval(self._chain, first, end)
        state_bytes = sum(size for weight, size in held.weights if weight in facts.state)
        received, handed_on = self._crossing(first, end)
        resident = [(facts.values[v].name, int(self._chain.value_bytes[v])) for v in held.resident]
        steps = facts.steps[first:end]
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
            peak_node=facts.steps[held.peak_step].node,
            resident=tuple(sorted(resident, key=lambda pair: (-pair[1], pair[0]))),
            recv_bytes=held.recv_bytes,
            send_bytes=held.send_bytes,
            inputs=received,
            outputs=handed_on,
            weight=facts.weight_size(first, end, state=False),
            state=facts.weight_size(first, end, state=True),
            moments=(
                (add_up(facts, first, end),)
                if self._chain.adds_up
                else find_moments(facts, self._last_touch, first, end, held.peak_step)
            ),
        )

    def _crossing(self, first: int, end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the values that steps [first, end) receive, and of those that they hand on or return."""
        values = self._facts.values
        touched = dict.fromkeys(v for step in self._facts.steps[first:end] for v in step.values)
        received = [v for v in touched if values[v].made_at < first]
        made = [v for v in touched if values[v].made_at >= first]
        handed_on = [v for v in made if values[v].returned or self._last_touch[v] >= end]
        return tuple(values[v].name for v in received), tuple(values[v].name for v in handed_on)

    def oversize(self, atom: int) -> Oversize:
        first, end = self._starts[atom], self._starts[atom + 1]
        held = interval(self._chain, first, end)
        values = self._facts.values
        inputs = sum(int(self._chain.value_bytes[v]) for v in held.resident if values[v].made_at < first)
        return Oversize(
            nodes=tuple(step.node for step in self._facts.steps[first:end]),
            weight_bytes=held.weight,
            input_bytes=inputs,
            output_bytes=held.activation - inputs,
            workspace_bytes=held.workspace,
            total_bytes=held.total,
        )

    def proof(self, certificate: Certificate, tried: SearchStats, traced: Sequence[NodeMemory]) -> Proof:
        """The proof in names; ``traced`` are the steps in the order of the trace."""
        fewest, moment, before, behind = tried.bound or (0, None, 0, 0)
        return Proof(
            min_partitions=certificate.min_partitions,
            witnesses=tuple(map(self._witness, certificate.witnesses)),
            max_bytes_lower_bound=certificate.max_bytes_lower_bound,
            max_witnesses=tuple(map(self._witness, certificate.max_witnesses)),
            orders_tried=tried.searched,
            exhaustive=tried.exhaustive,
            fewest_over_all_orders=fewest,
            moment="" if moment is None else traced[moment].node,
            partitions_before=before,
            partitions_behind=behind,
        )

    def _witness(self, witness: tuple[int, int, int]) -> Witness:
        first, rejected, size = witness
        steps = self._facts.steps
        return Witness(steps[self._starts[first]].node, steps[self._starts[rejected + 1] - 1].node, size)
