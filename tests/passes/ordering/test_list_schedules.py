"""Heuristic orders, chains over another order, and the search that never returns worse than trace order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from chains import Brute, chains, make_chain, separate
from dags import Dag, dags, makers_first, measure_sets, random_dag
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.ordering import rolling_beam
from fx_partition.passes.ordering import search as ordering_search
from fx_partition.passes.ordering.list_schedules import (
    HEURISTICS,
    depth_first,
    least_live,
    least_live_backwards,
    weights_together,
)
from fx_partition.passes.ordering.search import measure, search_order
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.permute import permuted


def assert_topological(order: list[int], predecessors: list[list[int]]) -> None:
    place = {atom: i for i, atom in enumerate(order)}
    assert sorted(order) == list(range(len(predecessors)))
    assert all(place[p] < place[atom] for atom, found in enumerate(predecessors) for p in found)


@pytest.mark.parametrize("name", HEURISTICS)
@settings(max_examples=60, deadline=None)
@given(dag=dags(max_atoms=12))
def test_heuristics_are_topological_and_deterministic(name: str, dag: Dag) -> None:
    order = HEURISTICS[name](*dag)
    assert_topological(order, dag[1])
    assert order == HEURISTICS[name](*dag)


def test_depth_first_finishes_one_branch_before_the_next() -> None:
    assert depth_first(separate(1, 1, 1, 1, 1), [[], [], [0], [1], [2, 3]]) == [0, 2, 1, 3, 4]


def test_least_live_frees_before_it_makes() -> None:
    # 0 and 1 make 8 bytes each; 2 and 3 turn one into 1 byte each; 4 joins them.
    steps = [(0, [0], []), (0, [1], []), (0, [0, 2], []), (0, [1, 3], []), (0, [2, 3], [])]
    chain = make_chain(steps, [(8, 0, False), (8, 1, False), (1, 2, False), (1, 3, False)])
    predecessors = makers_first(chain)
    assert least_live(chain, predecessors) == [0, 2, 1, 3, 4]
    assert least_live_backwards(chain, predecessors) in ([0, 2, 1, 3, 4], [1, 3, 0, 2, 4])


def test_least_live_runs_the_last_reader_of_a_value_before_what_makes_less() -> None:
    # 2 is the last to need 8 bytes and makes 3; 1 makes one byte and frees none.
    steps = [(0, [0], []), (0, [1], []), (0, [0, 2], []), (0, [1, 2], [])]
    chain = make_chain(steps, [(8, 0, False), (1, 1, False), (3, 2, False)])
    assert least_live(chain, makers_first(chain, [(0, 1)])) == [0, 2, 1, 3]


def test_least_live_backwards_makes_a_value_right_before_its_reader() -> None:
    # Atom 0 makes a large value that only the last atom reads.
    steps = [(0, [0], []), (0, [1], []), (0, [1, 2], []), (0, [2, 0], [])]
    chain = make_chain(steps, [(9, 0, False), (1, 1, False), (1, 2, False)])
    assert least_live_backwards(chain, makers_first(chain)) == [1, 2, 0, 3]


def test_readers_of_one_weight_go_side_by_side() -> None:
    chain = make_chain([(0, [], [(w, 5)]) for w in (0, 1, 0, 2, 0)], [], [5, 5, 5])
    assert weights_together(chain, [[] for _ in range(5)]) == [1, 3, 0, 2, 4]


@settings(max_examples=100, deadline=None)
@given(chains(max_atoms=6), st.data())
def test_a_permuted_chain_has_the_same_steps_at_other_places(chain: Chain, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(chain.num_atoms)))
    run = permuted(chain, order)
    steps = [t for a in order for t in range(chain.atom_start[a], chain.atom_start[a + 1])]
    for new, old in enumerate(steps):
        assert run.workspace[new] == chain.workspace[old]
        for start, column in (("touch_start", "touch_value"), ("weight_start", "weight_id")):
            mine, theirs = getattr(run, start), getattr(chain, start)
            assert getattr(run, column)[mine[new] : mine[new + 1]].tolist() == (
                getattr(chain, column)[theirs[old] : theirs[old + 1]].tolist()
            )
    defined = [steps.index(d) if d >= 0 else -1 for d in chain.value_def.tolist()]
    assert run.value_def.tolist() == defined
    back = permuted(run, np.argsort(order).tolist())
    assert all(np.array_equal(getattr(back, f), getattr(chain, f)) for f in chain.__dataclass_fields__)


@settings(max_examples=150, deadline=None)
@given(dags(max_atoms=8), st.data(), st.sampled_from(["downsets", "resplit", "rolled"]))
def test_never_worse_and_measured_as_executed(dag: Dag, data: st.DataObject, way: str) -> None:
    chain, predecessors = dag
    alone = contract(chain).alone.tolist()
    budget = data.draw(st.sampled_from(sorted({0, *alone, sum(alone) // 2, max(alone) * 3 // 2})))
    trace = Brute(chain).measure(dp(chain, budget), budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering_search, "EFFORT", 500)
        if way != "downsets":
            patch.setattr(ordering_search, "search_downsets", lambda *_, **__: None)
        if way == "rolled":
            patch.setattr(ordering_search, "SMALL", 0)
            patch.setattr(rolling_beam, "PIECE", 3)
        found = search_order(chain, predecessors, budget, lambda c: dp(c, budget))
    assert_topological(found.order, predecessors)
    parts = [found.order[a:b] for a, b in pairwise(found.boundaries)]
    assert all(part == sorted(part) for part in parts)
    executed = permuted(chain, found.order)
    measured = Brute(executed).measure(found.boundaries, budget)
    assert measured is not None and trace is not None and measured <= trace
    assert measured == measure(executed, found.boundaries, budget) == measure_sets(chain, parts, budget)
    if measured == trace:
        assert found.order == list(range(chain.num_atoms)) and found.boundaries == dp(chain, budget)


def test_search_order_finds_fewer_partitions() -> None:
    found = search_order(separate(3, 3, 1, 1), [[], [], [], []], 4, lambda c: dp(c, 4))
    assert (found.order, found.boundaries, found.tried[:2]) == ([0, 2, 1, 3], [0, 2, 4], (16, True))


def test_inside_a_partition_atoms_run_in_trace_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering_search, "search_downsets", lambda *_, **__: None)
    monkeypatch.setattr(ordering_search, "HEURISTICS", {"other": lambda *_: [2, 0, 3, 1]})
    monkeypatch.setattr(ordering_search, "SMALL", 0)
    monkeypatch.setattr(ordering_search, "MAX_ROLLED", 0)
    found = search_order(separate(3, 3, 1, 1), [[], [], [], []], 4, lambda c: dp(c, 4))
    assert (found.order, found.boundaries, found.tried[:2]) == ([0, 2, 1, 3], [0, 2, 4], (2, False))


def test_heuristics_find_fewer_partitions_where_downsets_are_too_many() -> None:
    # 16 weights, each read twice, in two rounds: trace order holds no weight for both of its readers.
    chain = make_chain([(0, [], [(w, 5)]) for _ in range(2) for w in range(16)], [], [5] * 16)
    found = search_order(chain, [[] for _ in range(32)], 5, lambda c: dp(c, 5))
    assert len(dp(chain, 5)) - 1 == 32 and len(found.boundaries) - 1 == 16
    assert not found.tried.exhaustive


def test_nothing_is_searched_where_nothing_can_be_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(ordering_search, "search_downsets", refuse)
    chain = separate(3, 3, 3)
    assert search_order(chain, [[], [0], [0, 1]], 3, lambda c: dp(c, 3)).tried[:2] == (1, True)  # a chain
    assert search_order(chain, [[], [], []], 9, lambda c: dp(c, 9)).tried[:2] == (1, True)  # one partition
    monkeypatch.setattr(ordering_search, "MAX_ATOMS", 2)
    assert search_order(chain, [[], [], []], 3, lambda c: dp(c, 3)).tried[:2] == (1, False)


def test_a_plan_over_the_budget_has_no_measure() -> None:
    assert measure(separate(3, 3), [0, 2], 5) is None
    assert measure(separate(7, 3), [0, 1, 2], 5) == (2, 3, 0)


def test_wide_graphs_have_topological_orders() -> None:
    chain, predecessors = random_dag(1, 1500)
    for heuristic in HEURISTICS.values():
        assert_topological(heuristic(chain, predecessors), predecessors)
