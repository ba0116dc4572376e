"""Devices that may have some atoms only, against all ways to spread a chain over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from chains import Brute, chains, separate
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.allowed_devices import overfill_allowed, spread_allowed
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.mixed_devices import overfill, spread

Rows = list[list[bool]]


def rows(allowed: Rows) -> list[np.ndarray]:
    return [np.array(row, dtype=np.bool_) for row in allowed]


def ways(num_atoms: int, allowed: Rows) -> Iterator[list[int]]:
    """Yield every way to give each device a run of atoms that it may have, empty ones included."""
    for inner in combinations_with_replacement(range(num_atoms + 1), len(allowed) - 1):
        way = [0, *inner, num_atoms]
        if all(all(row[a:b]) for row, (a, b) in zip(allowed, pairwise(way), strict=True)):
            yield way


def measure(brute: Brute, way: list[int], budgets: list[int], widest: int) -> tuple[int, int] | None:
    """Return (largest, bytes received), None if a run does not fit its device."""
    largest = received = 0
    for budget, (a, b) in zip(budgets, pairwise(way), strict=True):
        if a == b:
            continue
        size, received = brute.footprint[a, b], received + brute.received[a, b]
        if b - a == 1 and size > widest:
            continue
        if size > budget:
            return None
        largest = max(largest, size)
    return largest, received


@st.composite
def allowed_for(draw: st.DrawFn, num_atoms: int, devices: int) -> Rows:
    """Rows of a plan that exists, with more allowed or less; or any rows."""
    if draw(st.booleans()):
        return draw(st.lists(st.lists(st.booleans(), min_size=num_atoms, max_size=num_atoms),
                             min_size=devices, max_size=devices))  # fmt: skip
    inner = draw(st.lists(st.integers(0, num_atoms), min_size=devices - 1, max_size=devices - 1))
    ends = [0, *sorted(inner), num_atoms]
    more = draw(st.integers(0, 2))
    return [[a - more <= atom < b + more for atom in range(num_atoms)] for a, b in pairwise(ends)]


@settings(max_examples=150, deadline=None)
@given(chains(max_atoms=6), st.data(), st.sampled_from([0.0, 0.25, math.inf]))
def test_the_plan_is_the_best_of_all_that_are_allowed(chain: Chain, data: st.DataObject, slack: float) -> None:
    brute = Brute(chain)
    sizes = sorted({0, *brute.footprint.values()})
    budgets = data.draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=4))
    allowed = data.draw(allowed_for(chain.num_atoms, len(budgets)))
    widest = max(budgets)
    plan = spread_allowed(chain, budgets, rows(allowed), slack)
    for used in range(1, len(budgets) + 1):
        tried = ways(brute.num_atoms, allowed[:used])
        found = [m for way in tried if (m := measure(brute, way, budgets[:used], widest))]
        if found:
            break
    else:
        assert plan is None
        return
    assert plan is not None and len(plan) - 1 == used and plan in list(ways(brute.num_atoms, allowed[:used]))
    smallest = min(found)[0]
    limit = widest if math.isinf(slack) else min(widest, math.floor(smallest * (1 + slack)))
    best = min((cut, largest) for largest, cut in found if largest <= max(limit, smallest))
    assert measure(brute, plan, budgets[:used], widest) == best[::-1]


@settings(max_examples=100, deadline=None)
@given(chains(max_atoms=6), st.lists(st.integers(0, 20), min_size=1, max_size=4), st.data())
def test_the_largest_excess_is_as_small_as_is_allowed(chain: Chain, budgets: list[int], data: st.DataObject) -> None:
    brute = Brute(chain)
    allowed = data.draw(allowed_for(chain.num_atoms, len(budgets)))

    def measured(way: list[int]) -> tuple[int, int]:
        runs = [(pair, budget) for pair, budget in zip(pairwise(way), budgets, strict=True) if pair[0] < pair[1]]
        over = max(max(0, brute.footprint[pair] - budget) for pair, budget in runs)
        return over, sum(brute.received[pair] for pair, _ in runs)

    found = list(ways(brute.num_atoms, allowed))
    plan = overfill_allowed(chain, budgets, rows(allowed))
    if not found:
        assert plan is None
        return
    assert plan in found and measured(plan) == min(map(measured, found))


@settings(max_examples=100, deadline=None)
@given(chains(), st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_where_all_is_allowed_nothing_changes(chain: Chain, budgets: list[int]) -> None:
    every = rows([[True] * chain.num_atoms] * len(budgets))
    assert spread_allowed(chain, budgets, every) == spread(chain, budgets)
    assert overfill_allowed(chain, budgets, every) == overfill(chain, budgets)


def test_atoms_stay_on_their_devices() -> None:
    chain = separate(2, 2, 2, 2)
    first, second = [True, True, True, False], [False, False, False, True]
    assert spread_allowed(chain, [8, 8], rows([first, second])) == [0, 3, 4]
    assert spread_allowed(chain, [4, 8], rows([first, second])) is None
    assert overfill_allowed(chain, [4, 8], rows([first, second])) == [0, 3, 4]
    assert spread_allowed(chain, [8, 8], rows([second, first])) is None
    assert overfill_allowed(chain, [8, 8], rows([second, first])) is None
    assert spread_allowed(chain, [8, 8, 8], rows([first, [False] * 4, second])) == [0, 3, 3, 4]


def test_what_cannot_be_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        spread_allowed(separate(1), [1, -1], rows([[True], [True]]))
    with pytest.raises(ValueError, match="max_slack"):
        spread_allowed(separate(1), [1], rows([[True]]), -1)
