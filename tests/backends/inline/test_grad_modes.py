"""Grad modes that a graph sets: each stage begins in the mode of the call, and the call ends as eager mode does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from eager_stages import use_eager_stages
from torch import Tensor, nn

from fx_partition.report.compiled_plans import compiled_graphs

FIRST = nn.Parameter(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
LAST = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))


class Model(nn.Module):
    """Writes a value that needs a gradient where gradients are off: the stage that writes it writes a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = FIRST, LAST

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x[:, :3] * 1.0, self.first)
        with torch.no_grad():
            scale = torch.maximum(x, x)
            y.add_(scale, alpha=0.5)
        return F.linear(y, self.last)


def test_a_value_written_without_gradients_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    model = Model()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1})
    x = torch.randn(5, 8)
    found = []
    for function in (fast, model):
        result = function(x)
        result.cos().sum().backward()
        assert FIRST.grad is not None and LAST.grad is not None and torch.is_grad_enabled()
        found.append((result.detach(), FIRST.grad, LAST.grad))
        FIRST.grad = LAST.grad = None
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)
    assert compiled_graphs(fast)[0].plan.num_partitions >= 5


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_a_call_ends_in_the_mode_of_eager_mode(outer: bool, inner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor) -> Tensor:
        y = F.linear(x, FIRST.t())
        torch.set_grad_enabled(inner)
        return torch.relu(F.linear(y, FIRST))

    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1})
    x = torch.randn(5, 8)
    ends = []
    for function in (model, fast, fast):
        with torch.set_grad_enabled(outer):
            result = function(x)
            ends.append((torch.is_grad_enabled(), result.requires_grad))
    assert ends == [ends[0]] * 3
