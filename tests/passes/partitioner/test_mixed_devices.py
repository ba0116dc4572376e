"""Devices of different sizes, against all ways to spread a chain over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations_with_replacement, pairwise

import pytest
from chains import Brute, chains, separate
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.partitioner.dp import dp
from fx_partition.passes.partitioner.mixed_devices import farthest, overfill, spread


def spreads(num_atoms: int, devices: int) -> Iterator[list[int]]:
    """Yield every way to give each device a run, empty ones included."""
    for inner in combinations_with_replacement(range(num_atoms + 1), devices - 1):
        yield [0, *inner, num_atoms]


def measure(brute: Brute, boundaries: list[int], budgets: list[int]) -> tuple[int, int] | None:
    """Return (largest, bytes received), None if a run does not fit its device."""
    largest = received = 0
    for budget, (a, b) in zip(budgets, pairwise(boundaries), strict=True):
        if a == b:
            continue
        size = brute.footprint[a, b]
        received += brute.received[a, b]
        if b - a == 1 and size > max(budgets):
            continue
        if size > budget:
            return None
        largest = max(largest, size)
    return largest, received


@settings(max_examples=250, deadline=None)
@given(chains(max_atoms=6), st.data(), st.sampled_from([0.0, 0.25, math.inf]))
def test_spread_is_the_best_of_all_ways(chain: Chain, data: st.DataObject, slack: float) -> None:
    brute = Brute(chain)
    sizes = sorted({0, *brute.footprint.values()})
    budgets = data.draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=4))
    widest = max(budgets)
    plan = spread(chain, budgets, slack)
    for used in range(1, len(budgets) + 1):
        # The whole list decides whether an atom is oversize, so the unused budgets are there too, without atoms.
        ways = [[*way, *[brute.num_atoms] * (len(budgets) - used)] for way in spreads(brute.num_atoms, used)]
        found = [m for way in ways if (m := measure(brute, way, budgets))]
        if found:
            break
    else:
        assert plan is None
        return
    assert plan is not None and len(plan) - 1 == used
    smallest = min(found)[0]
    limit = widest if math.isinf(slack) else min(widest, math.floor(smallest * (1 + slack)))
    best = min((cut, largest) for largest, cut in found if largest <= max(limit, smallest))
    assert measure(brute, [*plan, *[brute.num_atoms] * (len(budgets) - used)], budgets) == best[::-1]


@settings(max_examples=100, deadline=None)
@given(chains(), st.integers(1, 9), st.data())
def test_equal_budgets_are_the_plan_of_equal_devices(chain: Chain, devices: int, data: st.DataObject) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted(brute.footprint.values())))
    even = dp(chain, budget)
    plan = spread(chain, [budget] * devices)
    assert (plan is None) == (len(even) - 1 > devices)
    if plan is not None:
        assert len(plan) == len(even)
        assert brute.measure(plan, budget) == brute.measure(even, budget)


@settings(max_examples=150, deadline=None)
@given(chains(max_atoms=6), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_overfill_exceeds_the_budgets_by_as_little_as_possible(chain: Chain, budgets: list[int]) -> None:
    brute = Brute(chain)

    def measured(way: list[int]) -> tuple[int, int]:
        runs = [(pair, budget) for pair, budget in zip(pairwise(way), budgets, strict=True) if pair[0] < pair[1]]
        over = max(max(0, brute.footprint[pair] - budget) for pair, budget in runs)
        return over, sum(brute.received[pair] for pair, _ in runs)

    assert measured(overfill(chain, budgets)) == min(map(measured, spreads(brute.num_atoms, len(budgets))))


@settings(max_examples=150, deadline=None)
@given(chains(max_atoms=8), st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_each_device_but_the_last_has_a_witness(chain: Chain, budgets: list[int]) -> None:
    brute = Brute(chain)
    boundaries, witnesses = farthest(contract(chain), budgets, max(budgets))
    reached = boundaries[-1] == chain.num_atoms
    assert len(witnesses) == len(boundaries) - 1 - reached
    for budget, start, (first, rejected, size) in zip(budgets, boundaries, witnesses, strict=False):
        assert first == start and size == brute.footprint[first, rejected + 1] > budget


def test_a_device_that_is_too_small_is_left_out() -> None:
    assert spread(separate(2, 2, 2), [1, 4, 4]) == [0, 0, 1, 3]
    assert spread(separate(2, 2, 2), [4, 4, 4]) == [0, 1, 3]
    assert spread(separate(2, 9, 2), [4, 4]) is None  # 9 is oversize and fits nowhere
    assert spread(separate(2, 9, 2), [4, 4, 4]) == [0, 1, 2, 3]
    assert spread(separate(2, 2), [1, 3]) is None


def test_what_cannot_be_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        spread(separate(1), [1, -1])
    with pytest.raises(ValueError, match="max_slack"):
        spread(separate(1), [1], -1)
