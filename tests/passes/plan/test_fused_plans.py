"""``footprint="fused"`` through plan, split, report and checker; `benchmarks/fused.py` holds it against inductor."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from zoo.captured import captured_family

import fx_partition
from fx_partition import Plan
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.verify.check import find_faults


@pytest.mark.parametrize(
    "name", ["mlp", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv2", "t5"))]
)
def test_fused_plans_of_models_hold(name: str) -> None:
    captured, memory = captured_family(name)
    whole = make_plan(captured, memory, Request.check(sys.maxsize)).max_bytes
    for options in ({}, {"algorithm": "greedy"}, {"devices": 2, "on_shortage": "balance"}, {"objective": "traffic"}):
        for share in (2, 4):
            plan = make_plan(captured, memory, Request.check(whole // share, footprint="fused", **options))
            assert find_faults(captured, plan) == []
            assert Plan.from_json(plan.to_json()) == plan and not plan.tradeoffs
            assert plan.spill_bytes == sum(max(0, p.total_bytes - whole // share) for p in plan.partitions)
            if "devices" not in options and name != "mobilenetv2":  # across a boundary its convolutions need more
                spilled = [p for p in plan.partitions if p.spill_bytes]
                assert all(any(set(p.nodes) <= set(o.nodes) for o in plan.oversize) for p in spilled), name


class Pointwise(nn.Module):
    """Two linear layers around pointwise operators, of which eager holds three results at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 256), nn.Linear(256, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(torch.sigmoid(h) * torch.tanh(h) + torch.relu(h))


def test_what_one_kernel_computes_takes_no_room() -> None:
    x = torch.zeros(64, 16)
    row = 64 * 256 * 4
    peak = fx_partition.plan(Pointwise(), x, cache_bytes="1GiB")
    fused = fx_partition.plan(Pointwise(), x, cache_bytes="1GiB", footprint="fused")
    assert peak.partitions[0].own_bytes >= 4 * row > 2 * row >= fused.partitions[0].own_bytes
    budget = fused.max_bytes + 1024
    assert fx_partition.plan(Pointwise(), x, cache_bytes=budget).num_partitions > 1
    cut = fx_partition.split(Pointwise(), x, cache_bytes=budget, footprint="fused")
    assert cut.plan.num_partitions == 1


def test_the_report_claims_nothing_that_is_not_proved() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    x = torch.zeros(4, 64)
    plan = fx_partition.plan(model, x, cache_bytes="40KiB", footprint="fused")
    text = fx_partition.report(plan)
    assert "Needs 3 devices of 40 KiB" in text and "no plan is ruled out" in text and "Why not" not in text
    short = fx_partition.plan(model, x, cache_bytes="20KiB", footprint="fused", devices=2)
    assert "Does not fit the 2 devices of 20 KiB given" in fx_partition.report(short)
    assert fx_partition.verify(short, model, x) == []
