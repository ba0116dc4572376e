"""Objectives and devices of a whole plan: the figures of a model, by `fx_partition.plan`."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from chains import chains
from claims import faults_of_spread
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fx_partition
from fx_partition import Plan
from fx_partition.passes.partitioner.certificate import Certificate
from fx_partition.passes.partitioner.certify import certify_spread
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.mixed_devices import overfill, spread
from fx_partition.passes.plan.replication import share_out

WIDTH = 64
LAYER = 4 * (WIDTH * WIDTH + WIDTH)


class Bottlenecks(nn.Module):
    """Layers whose outputs are wide, but for a narrow one that is a cheap place to cut."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [64, 64, 64, 8, 64, 64, 64, 64]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.zeros(4, WIDTH)
GRAPH = torch.export.export(Bottlenecks(), (X,)).module(check_guards=False)


def plan(cache_bytes: Any = "48KiB", **options: Any) -> Plan:
    return fx_partition.plan(GRAPH, cache_bytes=cache_bytes, **options)


def checked(made: Plan) -> Plan:
    assert fx_partition.verify(made, GRAPH) == []
    assert Plan.from_json(made.to_json()) == made
    return made


def test_traffic_cuts_fewer_bytes_with_as_many_partitions() -> None:
    balanced, traffic = checked(plan("56KiB")), checked(plan("56KiB", objective="traffic"))
    assert traffic.num_partitions == balanced.num_partitions
    assert traffic.cut_bytes < balanced.cut_bytes and traffic.max_bytes > balanced.max_bytes
    between = (traffic.max_bytes / balanced.max_bytes - 1) * 1.0001
    assert plan("56KiB", max_slack=between).cut_bytes == traffic.cut_bytes
    assert plan("56KiB", max_slack=between / 2).cut_bytes == balanced.cut_bytes


def test_rows_of_the_front_are_in_the_plan_and_its_report() -> None:
    made = plan("56KiB")
    rows = json.loads(made.to_json())["pareto"]
    assert rows[0] == {"num_partitions": made.num_partitions, "max_bytes": made.max_bytes, "cut_bytes": made.cut_bytes}
    assert {row["num_partitions"] for row in rows} <= {made.num_partitions + more for more in range(3)}
    traffic = plan("56KiB", objective="traffic")
    assert (traffic.num_partitions, traffic.max_bytes, traffic.cut_bytes) in made.tradeoffs
    text = fx_partition.report(made)
    assert "What other plans offer" in text and "this plan" in text


@pytest.mark.parametrize("devices", [1, 2, 3, 5, 20])
def test_without_a_budget_the_smallest_that_does_is_found(devices: int) -> None:
    made = checked(plan(None, devices=devices))
    assert made.num_partitions <= devices and made.spill_bytes == 0
    assert made.max_bytes == made.budget_bytes
    smaller = plan(made.budget_bytes - 1)
    assert smaller.num_partitions > devices or smaller.spill_bytes > 0
    assert "is the smallest size with which" in fx_partition.report(made)


def test_devices_of_different_sizes() -> None:
    sizes = [LAYER // 2, 3 * LAYER, 2 * LAYER, 4 * LAYER]
    made = checked(plan(sizes))
    assert made.device_budgets == tuple(sizes) and made.spill_bytes == 0
    assert made.partitions[0].slot == 1  # no layer fits the first
    for partition in made.partitions:
        assert partition.budget_bytes == sizes[partition.slot] >= partition.total_bytes
    text = fx_partition.report(made)
    assert "budget" in text and "by itself" in text and f"device 0 of {LAYER // 2 / 1024:.2f} KiB" in text
    named = plan(sizes, devices=["a", "b", "c", "d"])
    assert [p.device for p in named.partitions] == ["abcd"[p.slot] for p in made.partitions]


def test_equal_sizes_in_a_list_are_one_size() -> None:
    made = plan(["48KiB"] * 3)
    assert made.partitions == plan("48KiB").partitions and not made.device_budgets


@pytest.mark.parametrize("algorithm", ["dp", "greedy"])
def test_too_few_devices_of_different_sizes(algorithm: str) -> None:
    sizes = [2 * LAYER, int(1.5 * LAYER)]
    with pytest.raises(ValueError, match="do not hold the graph and there are 2 devices"):
        plan(sizes, on_shortage="error", algorithm=algorithm)
    made = checked(plan(sizes, algorithm=algorithm))
    assert made.num_partitions == 2 and made.spill_bytes > 0
    over = max(p.total_bytes - p.budget_bytes for p in made.partitions)
    assert "Does not fit the 2 devices" in fx_partition.report(made)
    assert plan([size + over for size in sizes], algorithm=algorithm).spill_bytes == 0
    assert plan([size + over - 1 for size in sizes], algorithm=algorithm).spill_bytes > 0
    turns = checked(plan(sizes, on_shortage="wrap", devices=["a", "b"], algorithm=algorithm))
    assert turns.spill_bytes == 0 and turns.num_partitions > 2
    assert [p.device for p in turns.partitions] == ["ab"[p.slot % 2] for p in turns.partitions]


def test_devices_left_over_copy_the_largest_partitions() -> None:
    made = checked(plan("48KiB", devices=6, replicate=True))
    assert sum(len(p.replicas) for p in made.partitions) == 6 - made.num_partitions
    assert made.partitions[0].replicas or made.partitions[1].replicas
    taken = sorted([p.slot for p in made.partitions] + [d for p in made.partitions for d in p.replicas])
    assert taken == list(range(6))
    assert "hold copies" in fx_partition.report(made) and "copies on" in fx_partition.report(made)
    assert not any(p.replicas for p in plan("48KiB", devices=6).partitions)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 5))
def test_copies_make_the_slowest_as_fast_as_can_be(sizes: list[int], spare: int) -> None:
    def slowest(counts: list[int]) -> float:
        return max(size / (1 + count) for size, count in zip(sizes, counts, strict=True))

    def ways(left: int, stages: int) -> list[list[int]]:
        if stages == 1:
            return [[left]]
        return [[here, *rest] for here in range(left + 1) for rest in ways(left - here, stages - 1)]

    copies = share_out(sizes, [30] * spare)
    assert sorted(device for found in copies for device in found) == list(range(spare))
    assert slowest([len(found) for found in copies]) == min(map(slowest, ways(spare, len(sizes))))


def test_copies_go_only_where_they_fit() -> None:
    assert share_out([6, 4, 2], [8, 8, 8]) == [[0, 2], [1], []]
    assert share_out([6, 4], [5, 1]) == [[], [0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_bytes": None}, "say how large one device is"),
        ({"devices": 0}, "devices=0 must be a number of devices"),
        ({"devices": True}, "devices=True must be a number of devices"),
        ({"cache_bytes": []}, "empty list"),
        ({"cache_bytes": ["1MiB", "much"]}, "'much' is not a size"),
        ({"cache_bytes": ["1MiB", "2MiB"], "devices": 3}, "sizes of 2 devices, and devices= says 3"),
        ({"max_slack": -0.1}, "max_slack=-0.1 is not a share"),
        ({"max_slack": math.nan}, "max_slack=nan is not a share"),
        ({"algorithm": "greedy", "objective": "traffic"}, "follows no objective"),
        ({"algorithm": "greedy", "max_slack": 0.1}, "follows no objective"),
        ({"replicate": True}, "replicate=True needs devices"),
    ],
)
def test_requests_that_contradict_themselves(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(**options)


@settings(max_examples=150, deadline=None)
@given(chains(max_atoms=7), st.lists(st.integers(0, 25), min_size=2, max_size=5), st.sampled_from([0.0, math.inf]))
def test_certificates_for_different_sizes_hold(chain: Chain, budgets: list[int], slack: float) -> None:
    runs = spread(chain, budgets, slack)
    certificate = certify_spread(chain, runs or overfill(chain, budgets), budgets)
    assert faults_of_spread(certificate, chain, runs or overfill(chain, budgets), budgets) == []
    assert (runs is None) == (certificate.min_partitions > len(budgets))
    claims = [
        Certificate(certificate.min_partitions - 1, certificate.witnesses, certificate.max_bytes_lower_bound, ()),
        Certificate(certificate.min_partitions, certificate.witnesses, certificate.max_bytes_lower_bound + 1, ()),
        Certificate(certificate.min_partitions + 1, certificate.witnesses, 0, ()),
    ]
    if runs is not None:
        for claim in claims:
            assert faults_of_spread(claim, chain, runs, budgets) != []
