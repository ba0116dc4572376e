"""The sliding window, its contraction and its reach equal the definition of a footprint, computed by brute force."""

from __future__ import annotations

from itertools import pairwise

from chains import brute_footprint, chains, make_chain
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract, footprints, whole_footprint
from fx_partition.passes.partitioner.greedy import FarthestReachSolver
from fx_partition.passes.partitioner.sliding_window import Window


@settings(max_examples=250, deadline=None)
@given(chains(), st.data())
def test_window_follows_the_definition_on_any_walk(chain: Chain, data: st.DataObject) -> None:
    start = chain.atom_start.tolist()
    window = Window(contract(chain))
    moves = data.draw(st.lists(st.sampled_from(["extend", "extend", "shrink", "reset"]), max_size=25))
    for move in moves:
        if move == "extend" and window.last < chain.num_atoms:
            window.extend()
        elif move == "shrink" and window.first < window.last:
            window.shrink()
        elif move == "reset":
            window.reset(data.draw(st.integers(0, chain.num_atoms)))
        expected = brute_footprint(chain, start[window.first], start[window.last])
        assert window.footprint == expected, (window.first, window.last)


@settings(max_examples=150, deadline=None)
@given(chains(max_atoms=6))
def test_contraction_knows_each_atom_and_the_whole(chain: Chain) -> None:
    start = chain.atom_start.tolist()
    contraction = contract(chain)
    alone = [brute_footprint(chain, a, b) for a, b in pairwise(start)]
    assert contraction.alone.tolist() == alone
    assert whole_footprint(contraction) == brute_footprint(chain, 0, chain.num_steps)


@settings(max_examples=150, deadline=None)
@given(chains(), st.data())
def test_sizes_of_a_plan_follow_the_definition(chain: Chain, data: st.DataObject) -> None:
    start, n = chain.atom_start.tolist(), chain.num_atoms
    plan = [0, *(a for a in range(1, n) if data.draw(st.booleans())), n]
    sizes = [brute_footprint(chain, start[a], start[b]) for a, b in pairwise(plan)]
    assert footprints(contract(chain), plan).tolist() == sizes


@settings(max_examples=250, deadline=None)
@given(chains(), st.data())
def test_reach_back_follows_the_definition(chain: Chain, data: st.DataObject) -> None:
    start, n = chain.atom_start.tolist(), chain.num_atoms
    size = {(a, b): brute_footprint(chain, start[a], start[b]) for b in range(n + 1) for a in range(b)}
    limit = data.draw(st.sampled_from(sorted({0, *size.values()})))
    largest = data.draw(st.sampled_from([None, limit, max(size.values())]))
    expected = [0]
    for end in range(1, n + 1):
        barred = largest is not None and limit < size[end - 1, end] <= largest
        fits = [a for a in range(end) if size[a, end] <= limit]
        expected.append(end if barred else min([*fits, end - 1]))
    assert FarthestReachSolver(contract(chain)).reach_back(limit, largest).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(chains(max_atoms=5, max_steps_per_atom=1))
def test_footprint_never_falls_and_never_exceeds_the_sum_of_its_parts(chain: Chain) -> None:
    n = chain.num_steps
    footprint = {(i, j): brute_footprint(chain, i, j) for i in range(n + 1) for j in range(i, n + 1)}
    for (i, j), size in footprint.items():
        assert size >= max(footprint[i, max(i, j - 1)], footprint[min(i + 1, j), j])
        assert all(size <= footprint[i, m] + footprint[m, j] for m in range(i, j + 1))


def test_partial_touches_of_a_weight_add_up_to_the_whole() -> None:
    chain = make_chain([(0, [], [(0, 4)]) for _ in range(4)], [], [10])
    window = Window(contract(chain))
    sizes = []
    for _ in range(4):
        window.extend()
        sizes.append(window.footprint)
    for _ in range(4):
        window.shrink()
        sizes.append(window.footprint)
    assert sizes == [4, 8, 10, 10, 10, 8, 4, 0]
