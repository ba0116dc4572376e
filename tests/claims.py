"""A certificate of a chain in numbers, as `verify` sees that of a plan: each step is a node with its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fx_partition.passes.capture.symbolic_sizes import Symbols
from fx_partition.passes.partitioner.certificate import Certificate
from fx_partition.passes.partitioner.certificate import Witness as Run
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.records import Partition, Proof, Witness
from fx_partition.passes.verify.boundaries import boundary_faults
from fx_partition.passes.verify.bounds import proof_faults, spread_faults
from fx_partition.passes.verify.case import Case
from fx_partition.passes.verify.ledger import Ledger


def ledger_of(chain: Chain) -> Ledger:
    """The steps of a chain; its weights are numbered behind its values."""
    values, steps = len(chain.value_bytes), range(chain.num_steps)
    weights = [
        list(zip(chain.weight_id[a:b].tolist(), chain.weight_touch_bytes[a:b].tolist(), strict=True))
        for a, b in pairwise(chain.weight_start.tolist())
    ]
    return Ledger(
        names=[f"n{step}" for step in steps],
        sizes=[*chain.value_bytes.tolist(), *chain.weight_bytes.tolist()],
        activations=[chain.touch_value[a:b].tolist() for a, b in pairwise(chain.touch_start.tolist())],
        weights=[[(values + weight, size) for weight, size in found] for found in weights],
        moments=[(int(chain.workspace[step]),) for step in steps],
        made_at=[*chain.value_def.tolist(), *(-1 for _ in chain.weight_bytes)],
        returned=[*map(bool, chain.value_returned.tolist()), *(False for _ in chain.weight_bytes)],
        state=(),
        memory_names=[f"m{memory}" for memory in range(values + len(chain.weight_bytes))],
    )


@dataclass(frozen=True)
class _Given:
    """Sizes that are numbers already."""

    ledger: Ledger

    def at(self, numbers: Any) -> Ledger:
        return self.ledger


def faults(
    certificate: Certificate, chain: Chain, boundaries: Sequence[int], budget: int, algorithm: str = "dp"
) -> list[str]:
    """Why boundaries are not a plan within a budget that is as good as its certificate says; none if they are."""
    parts = [(slot, a, b) for slot, (a, b) in enumerate(pairwise(boundaries))]
    case = _case(certificate, chain, parts, budget, (), algorithm)
    return [str(fault) for fault in (*proof_faults(case), *boundary_faults(case, own_order=True))]


def faults_of_spread(
    certificate: Certificate, chain: Chain, runs: Sequence[int], budgets: Sequence[int]
) -> list[str]:
    """The same for devices of different sizes, of which each has a run of atoms that may be empty."""
    parts = [(slot, a, b) for slot, (a, b) in enumerate(pairwise(runs)) if a < b]
    return [str(fault) for fault in spread_faults(_case(certificate, chain, parts, max(budgets), tuple(budgets), "dp"))]


def _case(
    certificate: Certificate,
    chain: Chain,
    parts: Sequence[tuple[int, int, int]],
    budget: int,
    budgets: tuple[int, ...],
    algorithm: str,
) -> Case:
    starts: list[int] = chain.atom_start.tolist()
    ledger = ledger_of(chain)

    def witnesses(runs: Sequence[Run]) -> tuple[Witness, ...]:
        known = [(f, r, size) if r < chain.num_atoms else (0, 0, -1) for f, r, size in runs]
        return tuple(Witness(ledger.names[starts[f]], ledger.names[starts[r + 1] - 1], size) for f, r, size in known)

    proof = Proof(
        certificate.min_partitions, witnesses(certificate.witnesses),
        certificate.max_bytes_lower_bound, witnesses(certificate.max_witnesses),
    )  # fmt: skip
    partitions = tuple(
        Partition(
            index=i, slot=slot, device="", budget_bytes=budgets[slot] if budgets else budget,
            nodes=tuple(ledger.names[starts[a] : starts[b]]), first="", last="", weight_bytes=0, state_bytes=0,
            activation_bytes=0, workspace_bytes=0, own_bytes=0, total_bytes=0, spill_bytes=0, peak_node="",
            resident=(), recv_bytes=0, send_bytes=0, inputs=(), outputs=(), weight=0, state=0, moments=(),
        )
        for i, (slot, a, b) in enumerate(parts)
    )  # fmt: skip
    plan = Plan(
        graph="", algorithm=algorithm, objective="balanced", max_slack=None, footprint="peak", budget_bytes=budget,
        budget_is_smallest=False, device_budgets=budgets, num_devices=len(budgets), symbols=Symbols(), bindings={},
        partitions=partitions, certificate=proof,
    )  # fmt: skip
    unused: Any = None
    sizes: Any = _Given(ledger)
    return Case(plan, unused, unused, range(chain.num_steps), starts, sizes, {})
