"""The search over downsets finds the best of all plans."""

from __future__ import annotations

from chains import brute_footprint, brute_received, make_chain, separate
from dags import Dag, best_by_pairs, dags, measure_sets
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.ordering.downset_footprint import Parts
from fx_partition.passes.ordering.downsets import search_downsets
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.permute import permuted


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
    assert found is not None
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
    assert found is not None
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


def test_too_many_downsets_are_given_up() -> None:
    assert search_downsets(separate(*[4] * 20), [[] for _ in range(20)], 8) is None


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
