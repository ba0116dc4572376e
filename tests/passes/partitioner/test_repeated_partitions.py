"""The planner chooses, among equally good plans, one with few distinct partitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from chains import Brute, chains, make_chain, separate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fx_partition
from fx_partition.passes.partitioner import repeated_partitions
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.dp import balance, dp
from fx_partition.passes.partitioner.permute import permuted
from fx_partition.passes.partitioner.repeated_partitions import choose, with_keys

Block = list[tuple[int, int, int]]  # weight bytes, value bytes, distance of the atom whose value is read too (0: none)


def repeated(block: Block, times: int) -> Chain:
    """Equal blocks in a row, which the caller gives a value of the last one's size: atom t reads value t, and makes
    value t + 1."""
    rows = block * times
    steps = []
    for t, (weight, _, back) in enumerate(rows):
        values = {t + 1, t, t - back if back else t}
        steps.append((0, sorted(value for value in values if value >= 0), [(t, weight)]))
    made = [(size, t, t == len(rows) - 1) for t, (_, size, _) in enumerate(rows)]
    chain = make_chain(steps, [(block[-1][1], -1, False), *made], [weight for weight, _, _ in rows])
    return with_keys(chain, [t % len(block) for t in range(len(rows))])


def keys_of(chain: Chain) -> tuple[int, ...]:
    assert chain.atom_key is not None
    return tuple(chain.atom_key.tolist())


def num_distinct(plan: Sequence[int], keys: Sequence[int]) -> int:
    return len({tuple(keys[a:b]) for a, b in pairwise(plan)})


LINEAR_RELU: Block = [(64, 4, 0), (0, 4, 0)]
# norm, projection, attention, projection, residual, norm, up, activation, down, residual: a transformer's block.
TRANSFORMER: Block = [
    (1, 4, 0), (48, 12, 0), (0, 4, 0), (16, 4, 0), (0, 4, 4),
    (1, 4, 0), (64, 16, 0), (0, 16, 0), (64, 4, 0), (0, 4, 4),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(chains(), st.data(), st.sampled_from([0.0, 0.5, math.inf]))
def test_keys_decide_only_between_equals(chain: Chain, data: st.DataObject, slack: float) -> None:
    brute = Brute(chain)
    budget = data.draw(st.sampled_from(sorted({0, *brute.footprint.values()})))
    keys = data.draw(st.lists(st.integers(0, 2), min_size=chain.num_atoms, max_size=chain.num_atoms))
    keyed = replace(chain, atom_key=np.array(keys, dtype=np.int64))
    leftmost, plan = dp(chain, budget, slack), dp(keyed, budget, slack)
    assert brute.measure(plan, budget) == brute.measure(leftmost, budget)
    assert num_distinct(plan, keys) <= num_distinct(leftmost, keys)
    assert plan == dp(keyed, budget, slack)


def fewest_distinct(chain: Chain, budget: int) -> int:
    """Return the fewest distinct partitions over all plans of the best measure."""
    brute = Brute(chain)
    measured = [(measure, plan) for plan in brute.plans() if (measure := brute.measure(plan, budget))]
    best = min(measure for measure, _ in measured)
    return min(num_distinct(plan, keys_of(chain)) for measure, plan in measured if measure == best)


@pytest.mark.parametrize(("block", "times"), [(LINEAR_RELU, 6), (TRANSFORMER[:5], 3), (TRANSFORMER[5:], 3)])
def test_blocks_in_a_row_are_cut_alike(block: Block, times: int) -> None:
    chain = repeated(block, times)
    brute = Brute(chain)
    sizes = sorted(set(brute.footprint.values()))
    for budget in sizes[:: max(1, len(sizes) // 6)]:
        plan = dp(chain, budget)
        assert num_distinct(plan, keys_of(chain)) == fewest_distinct(chain, budget), budget


def test_the_leftmost_plan_of_layers_has_three_and_the_plan_one() -> None:
    chain = repeated(LINEAR_RELU, 12)
    budget = 2 * 64 + 12
    leftmost = dp(replace(chain, atom_key=None), budget)
    assert leftmost == [0, 3, 7, 11, 15, 19, 24]
    assert num_distinct(leftmost, keys_of(chain)) == 3
    assert dp(chain, budget) == [0, 4, 8, 12, 16, 20, 24] == dp(chain, budget, math.inf) == balance(chain, 6)


def test_keys_are_equal_where_operators_and_sizes_are() -> None:
    chain = repeated([(64, 4, 0), (0, 4, 0)], 3)
    assert keys_of(chain) == (0, 1, 0, 1, 0, 1)
    touching = make_chain([(0, [], [(0, 8)]), (0, [], [(1, 8)]), (0, [], [(2, 4)]), (2, [], [(3, 8)])], [], [8] * 4)
    assert keys_of(with_keys(touching, "aaaa")) == (0, 0, 1, 2)
    assert keys_of(with_keys(touching, "abaa")) == (0, 1, 2, 3)
    pairs = replace(touching, atom_start=np.array([0, 2, 4]))
    assert keys_of(with_keys(pairs, "aaaa")) == (0, 1)


def test_keys_move_with_their_atoms() -> None:
    chain = replace(separate(1, 2, 3), atom_key=np.array([7, 8, 9]))
    assert keys_of(permuted(chain, [2, 0, 1])) == (9, 7, 8)
    assert permuted(separate(1, 2, 3), [2, 0, 1]).atom_key is None


def test_choices() -> None:
    def before(layer: int, p: int) -> list[int]:
        return [[0], [3, 4]][layer - 1]

    keys = np.array([0, 1] * 4)
    assert choose(before, 2, 8, None) == [0, 3, 8]
    assert choose(before, 2, 8, keys) == [0, 4, 8]
    assert choose(before, 2, 8, np.arange(8)) == [0, 3, 8]


def test_long_chains_get_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_partitions, "MAX_ATOMS", 3)
    assert with_keys(separate(1, 1, 1), "aaa").atom_key is not None
    assert with_keys(separate(1, 1, 1, 1), "aaaa").atom_key is None


def test_of_places_in_one_phase_one_that_repeats_a_partition() -> None:
    assert choose(lambda layer, p: [[0], [3, 4], [8]][layer - 1], 3, 12, np.zeros(12, dtype=np.int64)) == [0, 4, 8, 12]


@pytest.mark.parametrize("objective", ["balanced", "traffic"])
def test_plans_of_equal_layers_have_equal_partitions(objective: str) -> None:
    layers = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers)
    example = (torch.randn(4, 64),)
    plan = fx_partition.plan(model, example, cache_bytes="40KiB", objective=objective)
    assert plan.num_partitions == 4
    assert {len(p.nodes) for p in plan.partitions} == {4}
    assert len({p.total_bytes for p in plan.partitions}) == 1
