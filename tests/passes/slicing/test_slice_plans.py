"""``oversize="slice"`` through plan, split and report."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition import Plan

MIB = 1 << 20


class WithHead(nn.Module):
    """A body of 1 MiB and a head of 100 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(512, 512)
        self.head = nn.Linear(512, 51200, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


def test_a_head_of_100_mib_does_not_spill_at_24() -> None:
    with torch.device("meta"):
        model = WithHead()
    x = torch.zeros(1, 512, device="meta")
    whole = fx_partition.plan(model, x, cache_bytes="24MiB")
    assert whole.spill_bytes > 76 * MIB and len(whole.oversize) == 1
    plan = fx_partition.plan(model, x, cache_bytes="24MiB", oversize="slice")
    assert plan.spill_bytes == 0 and not plan.oversize and plan.max_bytes <= 24 * MIB
    assert plan.num_partitions == 5  # 101 MiB in devices of 24
    assert [(s.axis, s.parts) for s in plan.slicings] == [("outputs", 5)]
    assert Plan.from_json(plan.to_json()) == plan
    text = fx_partition.report(plan)
    assert "Needs 5 devices of 24 MiB" in text and "5 parts over its outputs" in text


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 2))
    return model, torch.randn(3, 64)


def test_split_runs_a_plan_that_slices_and_keeps_the_state_dict() -> None:
    model, x = small()
    cut = fx_partition.split(model, x, cache_bytes="40KiB", oversize="slice")
    assert cut.plan.slicings and cut.plan.spill_bytes == 0
    torch.testing.assert_close(cut(x), model(x))
    assert cut.state_dict().keys() == model.state_dict().keys()
    assert {id(p) for p in cut.parameters()} == {id(p) for p in model.parameters()}
    again = fx_partition.split(model, x, plan=Plan.from_json(cut.plan.to_json()))
    assert torch.equal(again(x), cut(x))
    assert fx_partition.verify(cut.plan, model, x) == []


def test_what_cannot_be_sliced_says_why() -> None:
    class Scans(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 0) @ x.t()

    x = torch.zeros(64, 64)
    plan = fx_partition.plan(Scans(), x, cache_bytes="20KiB", oversize="slice")
    assert plan.spill_bytes > 0 and not plan.slicings
    reasons = {atom.nodes[0]: atom.why_whole for atom in plan.oversize}
    assert reasons["cumsum"] == "no rule says how to slice its operator"
    assert reasons["matmul"] == "neither of its operands is a weight of the model"
    assert "not sliced: neither of its operands" in fx_partition.report(plan)


def test_a_head_whose_result_is_too_large_stays_whole() -> None:
    plan = fx_partition.plan(nn.Linear(8, 4096), torch.zeros(4, 8), cache_bytes="20KiB", oversize="slice")
    assert not plan.slicings and plan.oversize[0].why_whole == "what its slices share does not fit"


@pytest.mark.parametrize("budget", ["30KiB", "64KiB", "1MiB"])
def test_nothing_is_sliced_that_fits(budget: str) -> None:
    model, x = small()
    sliced = fx_partition.plan(model, x, cache_bytes=budget, oversize="slice")
    whole = fx_partition.plan(model, x, cache_bytes=budget)
    assert bool(sliced.slicings) == bool(whole.oversize)
    if not whole.oversize:
        assert sliced == whole
