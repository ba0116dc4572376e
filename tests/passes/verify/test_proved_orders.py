"""A plan that has the fewest partitions over all orders says so, and a claim of more is refused."""

from __future__ import annotations

from dataclasses import replace

import torch

from fx_partition import plan
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.verify.check import find_faults
from fx_partition.report.proof_sections import why


class Heads(torch.nn.Module):
    """One trunk and so many heads that their orders cannot be searched one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Linear(32, 32)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(15))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.trunk(x)
        return [head(x) for head in self.heads]


def test_the_fewest_over_all_orders_is_proved_and_checked() -> None:
    program = torch.export.export(Heads().eval(), (torch.randn(2, 32),))
    found = plan(program, cache_bytes=36 * 1024)
    proof = found.certificate
    assert found.num_partitions == proof.fewest_over_all_orders == 2 and not proof.exhaustive
    last = why(found).sections[-1].points[-1]
    assert "the fewest over all orders, proved" in last
    assert Plan.from_json(found.to_json()).certificate == proof

    captured = capture(program, None)
    assert find_faults(captured, found) == []
    for forged in (proof, replace(proof, moment=found.partitions[0].nodes[0])):
        claims = replace(found, certificate=replace(forged, fewest_over_all_orders=3))
        assert any("fewest_over_all_orders" in str(fault) for fault in find_faults(captured, claims))
