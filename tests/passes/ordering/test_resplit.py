"""Pieces of graphs, beams over them, moves, and plans whose windows are split again."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from chains import Brute, make_chain, separate
from dags import Dag, best_by_pairs, dags, measure_sets, random_dag
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.ordering import search as ordering_search
from fx_partition.passes.ordering.annealing import anneal, merged_away, squeeze
from fx_partition.passes.ordering.beam import Beam, Breadth, meet
from fx_partition.passes.ordering.piece import Graph, Piece, bits
from fx_partition.passes.ordering.resplit import NARROW, largest, resplit
from fx_partition.passes.ordering.rolling_beam import roll
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.permute import permuted

NARROWEST = Breadth(1, 1, 1)


def whole(dag: Dag, budget: int) -> Piece:
    chain, predecessors = dag
    return Graph(chain, predecessors).piece(range(chain.num_atoms), budget, lambda _, __: False)


def sets(groups: list[int]) -> list[list[int]]:
    return [list(bits(group)) for group in groups]


def assert_runs(groups: list[int], predecessors: list[list[int]]) -> None:
    done: set[int] = set()
    for atoms in sets(groups):
        done |= set(atoms)
        assert all(set(predecessors[a]) <= done for a in atoms)
    assert sorted(a for atoms in sets(groups) for a in atoms) == list(range(len(predecessors)))


@settings(max_examples=150, deadline=None)
@given(dags(), st.data())
def test_a_group_has_the_footprint_of_the_definition(dag: Dag, data: st.DataObject) -> None:
    chain, predecessors = dag
    n = chain.num_atoms
    order: list[int] = []
    while len(order) < n:
        ready = [a for a in range(n) if a not in order and set(predecessors[a]) <= set(order)]
        order.append(data.draw(st.sampled_from(ready)))
    first = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(first + 1, n))
    done, mine, rest = sorted(order[:first]), sorted(order[first:end]), sorted(order[end:])
    brute = Brute(permuted(chain, [*done, *mine, *rest]))
    piece = whole(dag, 0)
    group, after = sum(1 << a for a in mine), sum(1 << a for a in rest)
    assert piece.footprint(mine, group, after) == brute.footprint[first, end]
    assert piece.least(mine) <= brute.footprint[first, end]
    window, atoms = piece.within(group, after)
    assert atoms == mine and window.footprint(range(len(mine)), window.full, 0) == brute.footprint[first, end]
    cut = Graph(chain, predecessors).piece(mine, 0, lambda v, here: any(v in touched(chain, a) for a in rest))
    assert cut.footprint(range(len(mine)), cut.full, 0) == brute.footprint[first, end]


def touched(chain, atom):  # type: ignore[no-untyped-def]
    i, j = chain.touch_start[chain.atom_start[[atom, atom + 1]]]
    return chain.touch_value[i:j].tolist()


@settings(max_examples=100, deadline=None)
@given(dags(max_atoms=9), st.integers(1, 60), st.booleans())
def test_beams_give_plans_within_the_budget(dag: Dag, budget: int, backwards: bool) -> None:
    chain, predecessors = dag
    piece = whole(dag, budget)
    for breadth in (NARROWEST, NARROW):
        levels = Beam(piece, backwards).run(breadth, 1.0, piece.n)
        groups = list(levels[-1][piece.full])
        assert_runs(groups, predecessors)
        assert measure_sets(chain, sets(groups), budget) is not None
        assert [len(level) for level in levels[1:]] <= [breadth.width] * len(levels)


def test_beams_meet_in_the_middle() -> None:
    # Each beam alone stops one group short; what is left between them is a group.
    dag = separate(2, 2, 2), [[], [0], [1]]
    piece = whole(dag, 2)
    ahead, behind = (Beam(piece, backwards).run(NARROWEST, 1.0, 1) for backwards in (False, True))
    assert meet(piece, [ahead], [behind], 3) == [1, 2, 4]
    assert meet(piece, [ahead], [behind], 2) is None
    assert meet(piece.under(1), [ahead], [behind], 3) == [1, 2, 4], "an atom that is too large may be alone"


def test_moves_bring_an_overfull_plan_within_the_budget() -> None:
    piece = whole((separate(3, 3, 1, 1), [[], [], [], []]), 4)
    assert merged_away([0b0001, 0b0110, 0b1000], 1) == [0b0011, 0b1100]
    found = anneal(piece, [0b0011, 0b1100], 4, 1000, random.Random(0))
    assert found is not None and sorted(found) in ([0b0110, 0b1001], [0b0101, 0b1010])
    assert anneal(piece, [0b0011, 0b1100], 3, 200, random.Random(0)) is None


@settings(max_examples=100, deadline=None)
@given(dags(), st.data())
def test_no_group_is_smaller_than_its_atoms_show(dag: Dag, data: st.DataObject) -> None:
    """The largest group of random plans; budgets from one that every atom exceeds to one that none does."""
    _, predecessors = dag
    piece = whole(dag, 0)
    needs = sorted(piece.footprint([a], 1 << a, piece.full & ~(1 << a)) for a in range(piece.n))
    piece = piece.under(data.draw(st.sampled_from([0, *needs])))
    order: list[int] = []
    while len(order) < piece.n:
        ready = [a for a in range(piece.n) if a not in order and set(predecessors[a]) <= set(order)]
        order.append(data.draw(st.sampled_from(ready)))
    ends = sorted(data.draw(st.sets(st.integers(1, piece.n - 1)))) if piece.n > 1 else []
    groups = [sum(1 << a for a in order[i:j]) for i, j in pairwise([0, *ends, piece.n])]
    assert largest(piece, groups) >= piece.least_largest()


def test_no_move_is_tried_where_an_atom_shows_that_none_helps() -> None:
    piece = whole((separate(1, 3, 1, 1), [[], [], [], []]), 4)
    for moved, groups in ((False, [0b0010, 0b1101]), (True, [0b0011, 0b1100])):
        rng = random.Random(0)
        state = rng.getstate()
        assert largest(piece, squeeze(piece, groups, 200, rng)) == piece.least_largest() == 3
        assert (rng.getstate() != state) is moved


@settings(max_examples=100, deadline=None)
@given(dags(max_atoms=9), st.integers(0, 60), st.integers(0, 9))
def test_squeezed_plans_are_plans_and_never_worse(dag: Dag, budget: int, seed: int) -> None:
    chain, predecessors = dag
    piece = whole(dag, budget)
    trace = [sum(1 << a for a in range(i, j)) for i, j in pairwise(dp(chain, budget))]
    groups = squeeze(piece, trace, 300, random.Random(seed))
    assert_runs(groups, predecessors)
    found, known = measure_sets(chain, sets(groups), budget), measure_sets(chain, sets(trace), budget)
    assert found is not None and known is not None and found[:2] <= known[:2]
    assert groups == squeeze(piece, trace, 300, random.Random(seed))


def test_an_exchange_goes_where_no_move_does() -> None:
    # Any single move overfills a group by more than it relieves the other.
    piece = whole((separate(6, 5, 5, 4), [[], [], [], []]), 11)
    assert sorted(squeeze(piece, [0b0011, 0b1100], 200, random.Random(0))) == [0b0110, 0b1001]


@settings(max_examples=60, deadline=None)
@given(dags(max_atoms=7), st.data())
def test_resplit_is_never_worse_and_nearly_always_the_best(dag: Dag, data: st.DataObject) -> None:
    chain, predecessors = dag
    alone = contract(chain).alone.tolist()
    budget = data.draw(st.sampled_from(sorted({*alone, sum(alone) // 2, max(alone) * 3 // 2})))
    trace = [sum(1 << a for a in range(i, j)) for i, j in pairwise(dp(chain, budget))]
    groups = resplit(whole(dag, budget), [trace], lambda groups: groups, 1, 2000)[0]
    assert_runs(groups, predecessors)
    found, known = measure_sets(chain, sets(groups), budget), measure_sets(chain, sets(trace), budget)
    assert found is not None and known is not None
    assert best_by_pairs(dag, budget)[:2] <= found[:2] <= known[:2]


@pytest.mark.slow
def test_resplit_is_the_best_on_forty_random_graphs() -> None:
    missed = 0
    for seed in range(40):
        dag = random_dag(seed, 8)
        budget = int(contract(dag[0]).alone.max()) * 3 // 2
        trace = [sum(1 << a for a in range(i, j)) for i, j in pairwise(dp(dag[0], budget))]
        found = resplit(whole(dag, budget), [trace], lambda groups: groups, 1, 6000)[0]
        measured = measure_sets(dag[0], sets(found), budget)
        assert measured is not None
        missed += measured[:2] != best_by_pairs(dag, budget)[:2]
    assert missed <= 1


def test_rolled_orders_are_topological_and_the_same_again() -> None:
    chain, predecessors = random_dag(3, 600)
    graph = Graph(chain, predecessors)
    budget = int(contract(chain).alone.max()) * 3
    for backwards in (False, True):
        order = roll(graph, range(600), budget, NARROW, 1.0, backwards=backwards)
        place = {atom: i for i, atom in enumerate(order)}
        assert sorted(order) == list(range(600))
        assert all(place[p] < place[atom] for atom, found in enumerate(predecessors) for p in found)
        assert order == roll(graph, range(600), budget, NARROW, 1.0, backwards=backwards)


def test_a_wide_graph_takes_fewer_partitions_than_its_trace() -> None:
    # Forty branches of five atoms, level by level in the trace; each branch keeps reading its own weight.
    n, wide = 200, 40
    steps = [(0, [t, *([t - wide] if t >= wide else [])], [(t % wide, 20)]) for t in range(n)]
    chain = make_chain(steps, [(2, t, False) for t in range(n)], [20] * wide)
    predecessors = [[t - wide] if t >= wide else [] for t in range(n)]
    found = ordering_search.search_order(chain, predecessors, 60, lambda c: dp(c, 60))
    assert len(dp(chain, 60)) - 1 >= 4 * (len(found.boundaries) - 1)
