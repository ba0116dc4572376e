"""The footprint of an interval equals its definition, computed by brute force."""

from __future__ import annotations

import pytest
from chains import brute_profile, brute_received, chains, make_chain, separate
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.interval_footprint import interval


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


@pytest.mark.parametrize("bounds", [(0, 0), (1, 0), (-1, 1), (0, 3)])
def test_interval_outside_the_chain_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not an interval"):
        interval(separate(1, 2), *bounds)
