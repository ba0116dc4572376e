from __future__ import annotations

from itertools import pairwise

import pytest
from chains import brute_footprint, brute_profile, brute_received, chains, make_chain, separate
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract, footprints, whole_footprint
from fx_partition.passes.partitioner.greedy import FarthestReachSolver
from fx_partition.passes.partitioner.sliding_window import Window, interval


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


@settings(max_examples=250, deadline=None)
@given(chains(), st.data())
def test_interval_equals_the_definition_in_every_field(chain: Chain, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, chain.num_steps - 1))
    j = data.draw(st.integers(i + 1, chain.num_steps))
    weights, resident, bytes_at = brute_profile(chain, i, j)
    result = interval(chain, i, j)
    peak = bytes_at.index(max(bytes_at))
    assert result.total == max(bytes_at)
    assert result.peak_step == i + peak
    assert result.resident == tuple(sorted(resident[peak]))
    assert result.activation == sum(chain.value_bytes[v] for v in resident[peak])
    assert result.workspace == chain.workspace[i + peak]
    assert result.weights == tuple(sorted(weights.items()))
    assert result.weight == sum(weights.values())
    assert result.total == result.weight + result.activation + result.workspace
    assert result.recv_bytes == brute_received(chain, i, j)
    later = set(chain.touch_value[chain.touch_start[j] :].tolist())
    assert result.send_bytes == sum(int(chain.value_bytes[v]) for v in later if i <= chain.value_def[v] < j)


@settings(max_examples=100, deadline=None)
@given(chains(max_atoms=5, max_steps_per_atom=1))
def test_footprint_never_falls_and_never_exceeds_the_sum_of_its_parts(chain: Chain) -> None:
    n = chain.num_steps
    footprint = {(i, j): brute_footprint(chain, i, j) for i in range(n + 1) for j in range(i, n + 1)}
    for (i, j), size in footprint.items():
        assert size >= max(footprint[i, max(i, j - 1)], footprint[min(i + 1, j), j])
        assert all(size <= footprint[i, m] + footprint[m, j] for m in range(i, j + 1))


def test_a_received_value_counts_from_the_start_and_a_needed_one_to_the_end() -> None:
    # 0 makes x, 1 does not touch it, 2 reads it for the last time, 3 follows.
    chain = make_chain([(0, [0], []), (0, [], []), (0, [0], []), (5, [], [])], [(10, 0, False)])
    assert interval(chain, 1, 4).resident == (0,)
    assert interval(chain, 1, 4).peak_step == 1
    assert interval(chain, 1, 2).total == 0  # it goes from its producer to its consumer
    assert interval(chain, 3, 4).total == 5
    assert interval(chain, 0, 2).send_bytes == 10
    returned = make_chain([(0, [0], []), (5, [], [])], [(10, 0, True)])
    assert interval(returned, 0, 2).total == 15
    assert interval(returned, 0, 1).send_bytes == 0  # no step receives it


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


@pytest.mark.parametrize("bounds", [(0, 0), (1, 0), (-1, 1), (0, 3)])
def test_interval_outside_the_chain_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not an interval"):
        interval(separate(1, 2), *bounds)
