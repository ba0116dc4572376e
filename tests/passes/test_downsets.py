"""The search over downsets against all plans, and its groups."""

from __future__ import annotations

from itertools import pairwise

from chains import brute_footprint, brute_received, make_chain, separate
from dags import Dag, best_by_pairs, dags, measure_sets
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.contraction import contract
from fx_partition.passes.downsets import search_downsets
from fx_partition.passes.dp import dp
from fx_partition.passes.grouping import group_atoms
from fx_partition.passes.reorder import permuted
from fx_partition.passes.set_footprint import Parts


def assert_is_a_plan(sets: list[list[int]], predecessors: list[list[int]]) -> None:
    done: set[int] = set()
    for atoms in sets:
        done |= set(atoms)
        assert all(set(predecessors[a]) <= done for a in atoms)
    assert sorted(a for atoms in sets for a in atoms) == list(range(len(predecessors)))


@settings(max_examples=150, deadline=None)
@given(dags(), st.data())
def test_the_search_finds_the_best_of_all_plans(dag: Dag, data: st.DataObject) -> None:
    chain, predecessors = dag
    alone = contract(chain).alone.tolist()
    budget = data.draw(st.sampled_from(sorted({0, *alone, sum(alone) // 2, sum(alone) // 3 + 1, max(alone) * 3 // 2})))
    found = search_downsets(chain, predecessors, budget)
    assert found is not None and found.exact
    assert_is_a_plan(found.parts, predecessors)
    best = best_by_pairs(dag, budget)
    assert measure_sets(chain, found.parts, budget) == best
    known = search_downsets(chain, predecessors, budget, most=best[0])
    assert known is not None and measure_sets(chain, known.parts, budget) == best


@settings(max_examples=100, deadline=None)
@given(dags(), st.data())
def test_a_part_that_grows_has_the_footprint_of_the_definition(dag: Dag, data: st.DataObject) -> None:
    chain, predecessors = dag
    n = chain.num_atoms
    parts = Parts(chain, [[a] for a in range(n)])
    part, done, before = parts.empty(), set[int](), set[int]()
    skipped = data.draw(st.integers(0, n - 1))
    bound = 0
    for _ in range(n):
        ready = [a for a in range(n) if a not in done and set(predecessors[a]) <= done]
        atom = data.draw(st.sampled_from(ready))
        done.add(atom)
        if len(before) < skipped:
            before.add(atom)
            continue
        foretold = parts.bound(part, atom)
        part = parts.grown(part, atom, sum(1 << a for a in range(n) if a not in done))
        mine, rest = sorted(done - before), [a for a in range(n) if a not in done]
        run = permuted(chain, [*sorted(before), *mine, *rest])
        i, j = run.atom_start[[len(before), len(done)]].tolist()
        assert part.footprint == brute_footprint(run, i, j)
        assert part.received == brute_received(run, i, j)
        assert bound <= part.bound == foretold <= part.footprint
        bound = part.bound


def test_another_order_needs_fewer_partitions() -> None:
    # Two branches that each read one large weight twice, interleaved in the trace.
    reads = [[(0, 6)], [(1, 6)], [(0, 6)], [(1, 6)]]
    chain = make_chain([(0, [], read) for read in reads], [], [6, 6])
    predecessors: list[list[int]] = [[], [], [0], [1]]
    assert dp(chain, 6) == [0, 1, 2, 3, 4]
    found = search_downsets(chain, predecessors, 6)
    assert found is not None and found.exact
    assert sorted(found.parts) == [[0, 2], [1, 3]]
    assert found.num_downsets == 9


def test_precedence_is_kept_although_a_set_without_it_would_fit() -> None:
    chain = separate(3, 1, 3)
    found = search_downsets(chain, [[], [0], [1]], 4)
    assert found is not None and found.parts in ([[0, 1], [2]], [[0], [1, 2]])


def test_the_maximum_comes_before_the_bytes_received() -> None:
    # A value goes from atom 1 to atom 2: a cut behind atom 2 would save it, and make a partition of 7 bytes.
    touched: list[list[int]] = [[], [0], [0], []]
    chain = make_chain([(0, touched[i], [(i, 2)]) for i in range(4)], [(1, 1, False)], [2] * 4)
    predecessors: list[list[int]] = [[], [0], [1], [2]]
    found = search_downsets(chain, predecessors, 7)
    assert found is not None and found.parts == [[0, 1], [2, 3]]


def test_oversize_atoms_do_not_count_for_the_maximum() -> None:
    found = search_downsets(separate(50, 2, 2, 2, 2), [[], [0], [1], [2], [3]], 6)
    assert found is not None and found.parts == [[0], [1, 2], [3, 4]]


def test_too_many_downsets_are_grouped_or_given_up() -> None:
    wide = separate(*[4] * 20)
    assert search_downsets(wide, [[] for _ in range(20)], 8) is None
    # Five branches of eight: 9^5 downsets; in groups of four or more, at most 3^5.
    branches = separate(*[1] * 40)
    predecessors = [[] if a % 8 == 0 else [a - 1] for a in range(40)]
    found = search_downsets(branches, predecessors, 20, most=2, effort=1 << 20)
    assert found is not None and not found.exact and found.num_downsets <= 3**5
    assert_is_a_plan(found.parts, predecessors)
    assert measure_sets(branches, found.parts, 20) == (2, 20, 0)


def test_as_many_atoms_as_the_limit_are_too_many() -> None:
    chain = [[], [0], [1]]
    assert search_downsets(separate(1, 1, 1), chain, 2, limit=3) is None
    assert search_downsets(separate(1, 1, 1), chain, 2, limit=4) is not None


def test_an_effort_that_is_spent_is_given_up() -> None:
    chain = separate(*[1] * 10)
    assert search_downsets(chain, [[] for _ in range(10)], 5, effort=50) is None


def test_a_graph_without_atoms() -> None:
    found = search_downsets(make_chain([], []), [], 3)
    assert found is not None and found.parts == []


def test_series_runs_are_grouped_up_to_their_size() -> None:
    predecessors = [[], [0], [1], [2], [0]]  # 0 has two successors
    assert group_atoms(predecessors, [1] * 5, 3, -1) == ([[0], [1, 2, 3], [4]], [[], [0], [0]])
    assert group_atoms(predecessors, [1] * 5, 2, -1)[0] == [[0], [1, 2], [3], [4]]


@settings(max_examples=150, deadline=None)
@given(dags(max_atoms=9), st.integers(-1, 12), st.integers(0, 30))
def test_groups_have_no_cycle_and_stay_small(dag: Dag, absorb: int, series: int) -> None:
    chain, predecessors = dag
    sizes = Parts(chain, [[a] for a in range(chain.num_atoms)]).at_most
    groups, before = group_atoms(predecessors, sizes, series, absorb)
    assert sorted(a for group in groups for a in group) == list(range(chain.num_atoms))
    of = {a: g for g, group in enumerate(groups) for a in group}
    assert before == [sorted({of[p] for a in group for p in predecessors[a]} - {g}) for g, group in enumerate(groups)]
    done: set[int] = set()
    while len(done) < len(groups):
        ready = {g for g in range(len(groups)) if g not in done and set(before[g]) <= done}
        assert ready, "a cycle"
        done |= ready
    if absorb < 0:
        assert all(len(g) == 1 or sum(sizes[a] for a in g) <= series for g in groups)
        assert all(set(predecessors[b]) == {a} for g in groups for a, b in pairwise(g))
