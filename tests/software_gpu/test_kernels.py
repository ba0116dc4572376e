"""Each kernel and operator of the machine has the CPU's values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from .machine import Machine

F32, F16, BF16, I64, BOOL = torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool
FLOATS = [F32, F16, BF16]

Call = Callable[[Tensor, Tensor], Tensor]

FORMS: dict[str, Call] = {
    "add": lambda x, y: x + y,
    "add of a multiple": lambda x, y: torch.add(x, y, alpha=3),
    "add of a number": lambda x, y: x + 1.5,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "mul by a number": lambda x, y: x * 2.5,
    "div": lambda x, y: x / (y.abs() + 1.0),
    "div by a number": lambda x, y: x / 4.0,
    "relu": lambda x, y: torch.relu(x),
    "in place": lambda x, y: x.clone().add_(y).mul_(2.0),
    "broadcast": lambda x, y: x + y[0],
    "a column": lambda x, y: x * y[:, :1],
    "transposed": lambda x, y: x + y.t().contiguous().t(),
    "contiguous": lambda x, y: x.t().contiguous(),
    "every second column": lambda x, y: x[:, ::2].contiguous(),
    "a slice is written": lambda x, y: written_slice(x, y),
    "fill": lambda x, y: torch.full_like(x, 1.25),
    "ones": lambda x, y: torch.ones_like(x) + x,
    "matmul": lambda x, y: x @ y,
    "linear": lambda x, y: F.linear(x, y),
    "linear with a bias": lambda x, y: F.linear(x, y, y[0]),
    "bmm": lambda x, y: torch.bmm(x.view(4, 4, 16), y.view(4, 16, 4)),
    "gelu": lambda x, y: F.gelu(x),
    "layer norm": lambda x, y: F.layer_norm(x, (16,), y[0], y[1]),
    "softmax": lambda x, y: torch.softmax(x, -1),
    "mean": lambda x, y: x.mean(-1),
    "sum": lambda x, y: x.sum(0),
    "index": lambda x, y: x[torch.tensor([3, 1, 3], device=x.device)],
    "embedding": lambda x, y: F.embedding(torch.tensor([3, 1, 3], device=x.device), x),
    "cat": lambda x, y: torch.cat([x, y], 1),
    "isfinite": lambda x, y: torch.isfinite(x / torch.relu(x)),
}


def written_slice(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[2:5, 1:9] = y[:3, :8]
    return x


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_has_the_values_of_the_cpu(machine: Machine, form: Call, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    torch.testing.assert_close(form(x.to("cuda:1"), y.to("cuda:1")).cpu(), form(x, y))


@pytest.mark.parametrize("target", [F32, F16, BF16, torch.float64, I64, torch.int32, BOOL], ids=str)
@pytest.mark.parametrize("source", [F32, F16, BF16, torch.float64, I64, torch.int32, BOOL], ids=str)
def test_every_dtype_becomes_every_other(machine: Machine, source: torch.dtype, target: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, -2.0, 100.0, 3.0, 0.4999, 1.0009765625, 7.7]).to(source)
    torch.testing.assert_close(x.to("cuda:0").to(target).cpu(), x.to(target), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_small_dtypes_are_rounded_as_by_the_cpu(machine: Machine, dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(4000) * 10.0**power for power in range(-9, 6)])
    x = torch.cat([x, torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 65504.0, 65519.9, 65520.0, 6e-8, 2.9e-8])])
    torch.testing.assert_close(x.to("cuda:0").to(dtype).cpu(), x.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(x.to(dtype).to("cuda:0").to(F32).cpu(), x.to(dtype).to(F32), rtol=0, atol=0)


def test_random_numbers_have_their_range(machine: Machine) -> None:
    x, y = torch.rand(1000, device="cuda:1"), torch.randn(1000, device="cuda:1")
    assert 0 <= float(x.cpu().min()) < 0.1 and 0.9 < float(x.cpu().max()) < 1
    assert float(y.cpu().min()) < -2 and float(y.cpu().max()) > 2


def test_gradients_of_a_layer(machine: Machine) -> None:
    def gradients(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        x, w, b = (torch.randn(size).to(device).requires_grad_() for size in ((8, 16), (16, 16), (16,)))
        F.mse_loss(F.gelu(torch.relu(F.linear(x, w, b))), torch.ones(8, 16, device=device)).backward()
        return [tensor.grad.cpu() for tensor in (x, w, b) if tensor.grad is not None]

    torch.testing.assert_close(gradients("cuda:1"), gradients("cpu"))
