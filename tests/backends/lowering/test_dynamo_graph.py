"""What the planner knows of a Dynamo graph: whether its partitions record gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from eager_stages import use_eager_stages
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from fx_partition.report.compiled_plans import compiled_graphs

NORM = nn.RMSNorm(8)


def write_an_input(x: Tensor) -> Tensor:
    """Write an input that the norm has saved for its backward pass; eager mode refuses that, inductor does not."""
    result = NORM(x)
    x[..., 1:3] = 0.5
    return result


def write_a_viewed_input(x: Tensor) -> Tensor:
    result = NORM(x[1:].t().t()) * 2
    x.add_(1)
    return torch.relu(result) + x[1:]


@pytest.mark.parametrize("model", [write_an_input, write_a_viewed_input])
def test_an_input_saved_for_backward_is_not_written_by_another_partition(
    model: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_eager_stages(monkeypatch)
    x = torch.randn(5, 8)
    found = []
    for backend, options in (("l2partition", {"cache_bytes": 1}), (aot_eager, None)):
        torch._dynamo.reset()
        argument = x.clone()
        result = torch.compile(model, backend=backend, options=options)(argument)
        result.cos().sum().backward()
        assert NORM.weight.grad is not None
        found.append((result.detach(), argument, NORM.weight.grad))
        NORM.weight.grad = None
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)


def test_without_gradients_a_written_input_may_be_read_in_an_earlier_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    fast = torch.compile(write_an_input, backend="l2partition", options={"cache_bytes": 1})
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected, written = NORM(x), x.clone()
        assert torch.equal(fast(written), expected)
    assert (written[:, 1:3] == 0.5).all()
    assert [graph.plan.num_partitions for graph in compiled_graphs(fast)] == [2]
