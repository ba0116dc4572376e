"""Inputs that are written after they were saved for a backward pass: such a graph is compiled whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from eager_stages import use_eager_stages
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from fx_partition.common.errors import PartitionWarning
from fx_partition.report.compiled_plans import compiled_graphs

NORM = nn.RMSNorm(8)
FILTERS = nn.Parameter(torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)))


class Function(nn.Module):
    """A function as a module with its weights: `compiled_graphs` of a function returns those of all functions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.norm = function, NORM

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def write_an_input(x: Tensor) -> Tensor:
    """Write an input that the norm has saved for its backward pass, which eager mode refuses in `backward`."""
    result = NORM(x)
    x[..., 1:3] = 0.5
    return result


def write_a_view(x: Tensor) -> Tensor:
    """Write an input through a view; compiled without the convolution, AOTAutograd computes a wrong gradient."""
    view = x.reshape(1, 1, x.shape[0], -1)
    filtered = F.conv2d(view.to(memory_format=torch.channels_last), FILTERS, padding=1)
    result = NORM(view)
    view[..., 1:3] = 0.5
    return result + filtered.sum()


@pytest.mark.parametrize("model", [write_an_input, write_a_view])
def test_a_graph_that_writes_what_it_has_saved_is_compiled_whole(
    model: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_eager_stages(monkeypatch)
    x = torch.randn(5, 8)
    found = []
    for backend, options in (("l2partition", {"cache_bytes": 1}), (aot_eager, None)):
        torch._dynamo.reset()
        argument = x.clone()
        fast = torch.compile(model, backend=backend, options=options)
        if options:
            with pytest.warns(PartitionWarning, match=r"as x is written after \w+ has read it"):
                result = fast(argument)
        else:
            result = fast(argument)
        result.cos().sum().backward()
        assert NORM.weight.grad is not None
        found.append((result.detach(), argument, NORM.weight.grad))
        NORM.weight.grad = FILTERS.grad = None
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_graph_that_only_reads_what_it_has_written_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor) -> Tensor:
        x[..., 1:3] = 0.5
        return NORM(NORM(x))

    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    fast = torch.compile(Function(model), backend="l2partition", options={"cache_bytes": 1})
    x = torch.randn(5, 8)
    expected, expected_x = model(x.clone()), x.clone()
    model(expected_x)
    found = fast(x)
    assert torch.equal(found, expected) and torch.equal(x, expected_x)
    found.cos().sum().backward()
    gradient, NORM.weight.grad = NORM.weight.grad, None
    model(x).cos().sum().backward()
    torch.testing.assert_close(gradient, NORM.weight.grad)
    NORM.weight.grad = None
    assert [graph.plan.num_partitions for graph in compiled_graphs(fast)] == [2]


def test_without_gradients_a_written_input_may_be_read_in_an_earlier_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    fast = torch.compile(Function(write_an_input), backend="l2partition", options={"cache_bytes": 1})
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected, written = NORM(x), x.clone()
        assert torch.equal(fast(written), expected)
    assert (written[:, 1:3] == 0.5).all()
    assert [graph.plan.num_partitions for graph in compiled_graphs(fast)] == [2]
