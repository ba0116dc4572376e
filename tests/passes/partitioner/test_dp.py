from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest
from chains import Brute, chains, make_chain, separate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fx_partition.common.segment_tree import SegmentTree
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.dp import balance, dp, exactly, smallest_budget
from fx_partition.passes.partitioner.greedy import greedy
from fx_partition.passes.partitioner.pareto import pareto


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


@pytest.fixture(params=["as shipped", "no matrix", "no ties", "neither"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to solve a layer, and both to choose among plans with the fewest bytes."""
    if request.param in ("no matrix", "neither"):
        monkeypatch.setattr("fx_partition.passes.partitioner.min_cut._SMALL", 0)
    if request.param in ("no ties", "neither"):
        monkeypatch.setattr("fx_partition.passes.partitioner.cut_ties._PATIENCE", 0)


def with_slack(measures: list[tuple[int, int, int]], budget: int, slack: float) -> tuple[int, int, int]:
    """Return the (partitions, largest, bytes received) that `dp` with ``max_slack`` must find."""
    fewest = min(count for count, _, _ in measures)
    smallest = min(largest for count, largest, _ in measures if count == fewest)
    limit = budget if math.isinf(slack) else max(smallest, min(budget, math.floor(smallest * (1 + Fraction(slack)))))
    allowed = [(count, cut, largest) for count, largest, cut in measures if count == fewest and largest <= limit]
    count, cut, largest = min(allowed)
    return count, largest, cut


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chains(), st.data(), st.sampled_from([0.0, 0.1, 0.5, math.inf]))
def test_slack_trades_the_maximum_for_bytes(ways: None, chain: Chain, data: st.DataObject, slack: float) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    measures = [measure for other in brute.plans() if (measure := brute.measure(other, budget))]
    assert brute.measure(dp(chain, budget, slack), budget) == with_slack(measures, budget, slack)


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_the_front_are_the_best_of_all_plans(ways: None, seed: int) -> None:
    chain = crossing_chain(seed, 11)
    brute = Brute(chain)
    for k in (1, 2, 3, 4):
        budget = brute.footprint[0, 11] // k + 60
        measures = [measure for other in brute.plans() if (measure := brute.measure(other, budget))]
        fewest = min(measures)[0]
        rows = []
        for count in range(fewest, min(fewest + 2, 11) + 1):
            here = [(largest, cut) for found, largest, cut in measures if found == count]
            rows.append((count, *min(here)))
            rows.append((count, *min(here, key=lambda pair: pair[::-1])))
        kept: list[tuple[int, int, int]] = []
        for row in rows:
            if not any(all(a <= b for a, b in zip(other, row, strict=True)) for other in kept):
                kept.append(row)
        assert pareto(chain, budget) == kept
        assert pareto(chain, budget)[0] == min(measures)


def test_ties_under_slack_go_to_the_left() -> None:
    chain = separate(2, 2, 2, 2, 2)
    assert dp(chain, 8, math.inf) == [0, 2, 5]
    assert dp(separate(1, 0, 0, 0, 1), 1, math.inf) == [0, 1, 5]


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


@settings(max_examples=200, deadline=None)
@given(chains(), st.integers(1, 10))
def test_exactly_k_partitions_are_the_best_of_all_plans(chain: Chain, num_partitions: int) -> None:
    if num_partitions > chain.num_atoms:
        with pytest.raises(ValueError, match="do not make"):
            exactly(chain, num_partitions)
        return
    brute = Brute(chain)
    plans = [plan for plan in brute.plans() if len(plan) == num_partitions + 1]
    best = min((largest, cut) for _, largest, cut in (brute.measure(plan, None) or (0, 0, 0) for plan in plans))
    assert brute.measure(exactly(chain, num_partitions), None) == (num_partitions, *best)


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
    with pytest.raises(ValueError, match="max_slack must be a share"):
        dp(separate(1), 1, max_slack=-0.1)
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
    changes = st.lists(st.tuples(st.booleans(), positions, st.integers(-9, 9)), max_size=20)
    for is_set, i, amount in data.draw(changes):
        # The last number stands for the unused leaves too, so only a larger one may be replaced there.
        if is_set and (i < len(numbers) - 1 or amount <= numbers[i]):
            tree.set(i, amount)
            numbers[i] = amount
        else:
            tree.add_from(i, amount)
            numbers = [number + (amount if at >= i else 0) for at, number in enumerate(numbers)]
        at = data.draw(positions)
        assert tree.min_from(at) == min(numbers[at:])
