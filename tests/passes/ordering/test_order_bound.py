"""The bound over all orders is never above the best of all orders, for any moment."""

from __future__ import annotations

import pytest
from chains import make_chain, separate
from dags import Dag, best_by_pairs, dags, random_dag
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.ordering.check_order_bound import Weighed
from fx_partition.passes.ordering.downsets import search_downsets
from fx_partition.passes.ordering.order_bound import OrderBound, order_bound
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract


def fewest_partitions(chain: Chain, budget: int, moment: int | None) -> int:
    """Return what one moment of the trace shows of all atoms; ``None``: the weights alone."""
    return Weighed(chain, budget).fewest(range(chain.num_atoms), moment)


@settings(max_examples=200, deadline=None)
@given(dags(max_atoms=6), st.data())
def test_no_moment_says_more_than_the_best_plan(dag: Dag, data: st.DataObject) -> None:
    chain, _ = dag
    alone = contract(chain).alone.tolist()
    budget = data.draw(st.sampled_from(sorted({0, *alone, sum(alone) // 2, sum(alone) // 3 + 1, max(alone) * 3 // 2})))
    fewest = best_by_pairs(dag, budget)[0]
    for moment in (None, *range(chain.num_steps)):
        assert fewest_partitions(chain, budget, moment) <= fewest


@pytest.mark.parametrize("seed", range(0, 300, 10))
def test_ten_larger_graphs_each(seed: int) -> None:
    equal = 0
    for each in range(seed, seed + 10):
        chain, predecessors = random_dag(each, 5 + each % 5)
        alone = sorted(contract(chain).alone.tolist())
        budget = (alone[-2] * 3 // 2, alone[-1], alone[-1] * 2, alone[-2])[each % 4]
        found = search_downsets(chain, predecessors, budget, limit=1 << 14, effort=1 << 20)
        assert found is not None
        bound = order_bound(chain, budget)
        shown = [fewest_partitions(chain, budget, moment) for moment in (None, *range(chain.num_steps))]
        assert bound.fewest == fewest_partitions(chain, budget, bound.moment) <= max(shown) <= len(found.parts)
        equal += bound.fewest == len(found.parts)
    assert equal, "the bound says nothing"


def test_weights_alone() -> None:
    assert order_bound(separate(3, 3), 4) == OrderBound(2, None)
    assert order_bound(separate(3, 3, 1, 1), 4) == OrderBound(2, None)


def test_what_is_live_at_one_moment() -> None:
    # Four values of 4 bytes are made, and then read one by one; each is small by itself and there are no weights.
    steps = [(0, [v], []) for v in range(4)] + [(0, [v, 4 + v], []) for v in range(4)]
    chain = make_chain(steps, [(4, v, False) for v in range(4)] + [(0, 4 + v, False) for v in range(4)])
    assert fewest_partitions(chain, 8, None) == 1
    assert order_bound(chain, 8) == OrderBound(2, 3)
    assert fewest_partitions(chain, 8, 7) == 1


def test_an_oversize_atom_is_one_partition_and_its_weights_do_not_count() -> None:
    assert fewest_partitions(separate(50, 3, 3), 4, None) == 3
    assert fewest_partitions(separate(50), 4, 0) == 1
    assert fewest_partitions(make_chain([], []), 4, None) == 0
