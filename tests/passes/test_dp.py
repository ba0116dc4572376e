from __future__ import annotations

import random
from itertools import pairwise

import pytest
from chains import Brute, chains, make_chain, separate
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.chain import Chain
from fx_partition.passes.dp import balance, dp, smallest_budget
from fx_partition.passes.greedy import greedy
from fx_partition.passes.segment_tree import SegmentTree


def crossing_chain(seed: int, num_atoms: int) -> Chain:
    """Atoms of similar weight with many values between near ones: wide layers, many links across them."""
    rng = random.Random(seed)
    touched: list[list[int]] = [[] for _ in range(num_atoms)]
    values = []
    for index in range(3 * num_atoms):
        defined = rng.randrange(num_atoms)
        uses = {min(num_atoms - 1, defined + rng.randrange(8)) for _ in range(rng.randrange(4))}
        for step in {defined, *uses}:
            touched[step].append(index)
        values.append((rng.randrange(4), defined, False))
    weights = [rng.randrange(60, 100) for _ in range(num_atoms)]
    return make_chain([(0, touched[a], [(a, weights[a])]) for a in range(num_atoms)], values, weights)


@settings(max_examples=300, deadline=None)
@given(chains(), st.data())
def test_dp_is_the_best_of_all_plans(chain: Chain, data: st.DataObject) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    plan = dp(chain, budget)
    measures = [measure for other in brute.plans() if (measure := brute.measure(other, budget))]
    assert brute.measure(plan, budget) == min(measures)
    assert len(plan) == len(greedy(chain, budget))


@pytest.mark.parametrize("seed", range(25))
def test_dp_is_the_best_where_many_links_cross_layers(seed: int) -> None:
    chain = crossing_chain(seed, 10)
    brute = Brute(chain)
    for k in (2, 3, 4):
        budget = brute.footprint[0, 10] // k + 60
        measures = [measure for other in brute.plans() if (measure := brute.measure(other, budget))]
        assert brute.measure(dp(chain, budget), budget) == min(measures)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 45), st.integers(2, 9))
def test_dp_cut_agrees_with_a_plain_quadratic_table(seed: int, n: int, k: int) -> None:
    chain = crossing_chain(seed, n)
    brute = Brute(chain)
    budget = brute.footprint[0, n] // k + 100
    plan = dp(chain, budget)
    measured = brute.measure(plan, budget)
    assert measured is not None
    count, largest, cut = measured
    # (partitions, bytes received) of the best plan of a prefix under the plan's own maximum.
    best = [(0, 0)]
    for p in range(1, n + 1):
        reachable = (q for q in range(p) if p - q == 1 or brute.footprint[q, p] <= largest)
        best.append(min((best[q][0] + 1, best[q][1] + brute.received[q, p]) for q in reachable))
    assert best[n] == (count, cut)
    assert len(greedy(chain, budget)) == count + 1
    if largest > max(brute.footprint[a, a + 1] for a in range(n)):
        assert len(greedy(chain, largest - 1)) > count + 1


@settings(max_examples=200, deadline=None)
@given(chains(), st.integers(1, 10))
def test_balance_is_the_best_of_all_plans(chain: Chain, num_partitions: int) -> None:
    brute = Brute(chain)
    plan = balance(chain, num_partitions)
    measures = [brute.measure(other, None) for other in brute.plans() if len(other) <= num_partitions + 1]
    best = min((largest, count, cut) for count, largest, cut in filter(None, measures))
    measured = brute.measure(plan, None)
    assert measured is not None
    count, largest, cut = measured
    assert (largest, count, cut) == best
    assert smallest_budget(chain, num_partitions) == largest


@settings(max_examples=100, deadline=None)
@given(chains(), st.integers(1, 10))
def test_smallest_budget_is_exact(chain: Chain, num_partitions: int) -> None:
    def suffices(budget: int) -> bool:
        plan = greedy(chain, budget)
        brute = Brute(chain)
        parts = pairwise(plan)
        return len(plan) - 1 <= num_partitions and all(brute.footprint[part] <= budget for part in parts)

    budget = smallest_budget(chain, num_partitions)
    assert suffices(budget)
    assert budget == 0 or not suffices(budget - 1)


def test_dp_balances_where_greedy_fills_up() -> None:
    assert greedy(separate(2, 2, 2, 2), 6) == [0, 3, 4]
    assert dp(separate(2, 2, 2, 2), 6) == [0, 2, 4]


def test_dp_cuts_where_little_crosses() -> None:
    # Three equal atoms; the value between the first two is large, so it is not cut.
    steps: list[tuple[int, list[int], list[tuple[int, int]]]] = [
        (0, [0], []),
        (0, [0, 1], []),
        (0, [1], []),
        (0, [], []),
    ]
    chain = make_chain(steps, [(8, 0, False), (1, 1, False)])
    assert dp(chain, 9) == [0, 4]
    heavy = make_chain(
        [(0, touched, [(i, 10)]) for i, (_, touched, _) in enumerate(steps)],
        [(8, 0, False), (1, 1, False)],
        [10] * 4,
    )
    assert dp(heavy, 29) == [0, 2, 4]


def test_ties_go_to_the_left() -> None:
    assert dp(separate(1, 0, 0, 0, 1), 1) == [0, 1, 5]


def test_oversize_atoms_do_not_count_for_the_maximum() -> None:
    chain = separate(50, 2, 2, 2, 2, 50)
    assert dp(chain, 6) == [0, 1, 3, 5, 6]
    assert balance(chain, 4) == balance(chain, 3)  # three partitions have the same maximum as four
    assert balance(chain, 1) == [0, 6]


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        dp(separate(1), -1)
    with pytest.raises(ValueError, match="need 2 partitions"):
        dp(separate(3, 3), 3, max_partitions=1)
    assert dp(separate(3, 3), 3, max_partitions=2) == [0, 1, 2]
    for function in (balance, smallest_budget):
        with pytest.raises(ValueError, match="at least 1"):
            function(separate(1), 0)


def test_a_chain_without_steps_has_no_partitions() -> None:
    empty = make_chain([], [])
    assert dp(empty, 0) == balance(empty, 2) == [0]
    assert smallest_budget(empty, 1) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=20), st.data())
def test_segment_tree_is_a_list_with_suffix_sums(numbers: list[int], data: st.DataObject) -> None:
    tree = SegmentTree(numbers)
    positions = st.integers(0, len(numbers) - 1)
    for i, amount in data.draw(st.lists(st.tuples(positions, st.integers(-9, 9)), max_size=20)):
        tree.add_from(i, amount)
        numbers = [number + (amount if at >= i else 0) for at, number in enumerate(numbers)]
        at = data.draw(positions)
        assert tree.min_from(at) == min(numbers[at:])
