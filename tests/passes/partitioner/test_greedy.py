from __future__ import annotations

from itertools import pairwise

import pytest
from chains import Brute, chains, make_chain, separate
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.greedy import greedy, oversize_atoms


@settings(max_examples=200, deadline=None)
@given(chains(), st.data())
def test_greedy_takes_the_farthest_reach_and_the_fewest_partitions(chain: Chain, data: st.DataObject) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    n = chain.num_atoms
    plan = greedy(chain, budget)
    assert plan[0] == 0 and plan[-1] == n
    for start, end in pairwise(plan):
        assert end - start == 1 or brute.footprint[start, end] <= budget
        assert end == n or brute.footprint[start, end + 1] > budget
    assert len(plan) == min(len(other) for other in brute.plans() if brute.measure(other, budget))
    assert oversize_atoms(chain, budget) == [a for a in range(n) if brute.footprint[a, a + 1] > budget]


def test_greedy_fills_up() -> None:
    assert greedy(separate(3, 3, 3), 6) == [0, 2, 3]
    assert greedy(separate(3, 3, 3), 9) == [0, 3]


def test_an_oversize_atom_is_a_partition_of_its_own() -> None:
    chain = separate(1, 1, 9, 1, 9, 9)
    assert greedy(chain, 4) == [0, 2, 3, 4, 5, 6]
    assert oversize_atoms(chain, 4) == [2, 4, 5]


def test_a_chain_without_steps_has_no_partitions() -> None:
    assert greedy(make_chain([], []), 1) == [0]
    assert oversize_atoms(make_chain([], []), 1) == []


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        greedy(separate(1), -1)
    with pytest.raises(ValueError, match="negative"):
        oversize_atoms(separate(1), -1)
