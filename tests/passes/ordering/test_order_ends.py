"""Partitions before and after some atoms are never more than the best order has, and the checker agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from chains import make_chain
from claims import ledger_of
from dags import Dag, best_by_pairs, dags, random_dag
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition import plan
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.ordering.downsets import search_downsets
from fx_partition.passes.ordering.order_bound import OrderBound, order_bound
from fx_partition.passes.ordering.order_ends import MOST_ATOMS, Ends, bound_with_ends
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.verify.all_orders import _Atoms, _heads_and_tails
from fx_partition.passes.verify.check import find_faults
from fx_partition.passes.verify.order import Needs
from fx_partition.report.proof_sections import why


def checked(dag: Dag, budget: int) -> tuple[_Atoms, list[int], list[int]]:
    """The checker's atoms, heads and tails."""
    chain, predecessors = dag
    starts: list[int] = chain.atom_start.tolist()
    direct: list[list[int]] = [[] for _ in range(chain.num_steps)]
    for atom, found in enumerate(predecessors):
        direct[starts[atom]] += [starts[p] for p in found]
    atoms = _Atoms(ledger_of(chain), starts, budget)
    return atoms, *_heads_and_tails(atoms, Needs(direct, []))


def assert_checked(dag: Dag, budget: int, bound: OrderBound) -> None:
    ends = Ends(*dag, budget)
    atoms, head, tail = checked(dag, budget)
    assert (ends.head, ends.tail) == (head, tail)
    among = [a for a in range(atoms.count) if head[a] > bound.before and tail[a] > bound.behind]
    assert bound.before + atoms.fewest(among, bound.moment) + bound.behind == bound.fewest


@settings(max_examples=250, deadline=None)
@given(dags(max_atoms=7), st.data())
def test_never_more_than_the_best_plan_has(dag: Dag, data: st.DataObject) -> None:
    chain, predecessors = dag
    alone = contract(chain).alone.tolist()
    budget = data.draw(st.sampled_from(sorted({0, *alone, sum(alone) // 2, sum(alone) // 3 + 1, max(alone) * 3 // 2})))
    bound = bound_with_ends(chain, predecessors, budget, order_bound(chain, budget))
    assert bound.fewest <= best_by_pairs(dag, budget)[0]
    assert_checked(dag, budget, bound)


@pytest.mark.parametrize("seed", range(0, 300, 30))
def test_thirty_larger_graphs_each(seed: int) -> None:
    better = equal = 0
    for each in range(seed, seed + 30):
        chain, predecessors = dag = random_dag(each, 5 + each % 5)
        alone = sorted(contract(chain).alone.tolist())
        budget = (alone[-2] * 3 // 2, alone[-1], alone[-1] * 2, alone[-2])[each % 4]
        found = search_downsets(chain, predecessors, budget, limit=1 << 14, effort=1 << 20)
        assert found is not None
        known = order_bound(chain, budget)
        bound = bound_with_ends(chain, predecessors, budget, known)
        assert known.fewest <= bound.fewest <= len(found.parts)
        assert_checked(dag, budget, bound)
        better += bound.fewest > known.fewest
        equal += bound.fewest == len(found.parts)
    assert better >= 5 and equal >= 10, (better, equal)


def back_and_forth(n: int) -> Dag:
    """A chain whose atoms read two weights in turn."""
    steps = [(0, [t, t - 1] if t else [t], [(t % 2, 20)]) for t in range(n)]
    return make_chain(steps, [(1, t, t == n - 1) for t in range(n)], [20, 20]), [[t - 1] if t else [] for t in range(n)]


def test_pairs_that_no_partition_holds() -> None:
    chain, predecessors = back_and_forth(4)
    ends = Ends(chain, predecessors, 25)
    assert (ends.head, ends.tail) == ([1, 2, 3, 4], [4, 3, 2, 1])
    assert order_bound(chain, 25) == OrderBound(2, None)
    assert bound_with_ends(chain, predecessors, 25, OrderBound(2, None)) == OrderBound(4, None, before=0, behind=2)
    assert bound_with_ends(chain, predecessors, 42, OrderBound(1, None)) == OrderBound(1, None)


def test_a_large_graph_keeps_the_bound_that_is_known() -> None:
    chain, predecessors = back_and_forth(MOST_ATOMS + 1)
    assert bound_with_ends(chain, predecessors, 25, OrderBound(2, None)) == OrderBound(2, None)


class BackAndForth(torch.nn.Module):
    """Two layers in turn, and enough heads that their orders cannot be searched one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(2))
        self.heads = torch.nn.ModuleList(torch.nn.Linear(64, 1) for _ in range(15))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return [head(x) for head in self.heads]


def test_what_runs_before_and_behind_is_said_and_checked() -> None:
    program = torch.export.export(BackAndForth().eval(), (torch.randn(2, 64),))
    found = plan(program, cache_bytes=30 * 1024)
    proof = found.certificate
    assert found.num_partitions == proof.fewest_over_all_orders == 4 and not proof.exhaustive
    assert proof.partitions_before + proof.partitions_behind > 0
    assert "before some nodes and" in why(found).sections[-1].points[-1]
    assert Plan.from_json(found.to_json()).certificate == proof

    captured = capture(program, None)
    assert find_faults(captured, found) == []
    for edit in (
        {"fewest_over_all_orders": 3}, {"fewest_over_all_orders": 5}, {"fewest_over_all_orders": 0},
        {"partitions_before": proof.partitions_before + 3}, {"partitions_behind": proof.partitions_behind + 3},
        {"partitions_before": 20}, {"partitions_behind": 20}, {"partitions_before": 0, "partitions_behind": 0},
    ):  # fmt: skip
        forged = replace(found, certificate=replace(proof, **edit))
        assert [str(fault) for fault in find_faults(captured, forged) if fault.path.startswith("certificate.")], edit
