"""Models and stages on GPUs of every kind: results are eager mode's, on its devices, when the call returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fx_partition.common.errors import PartitionWarning

from .machine import Machine
from .models import WIDTH, Chain, Placed, compiled, layer, rows, run_stages_eagerly

SEEDS = range(4)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    return run_stages_eagerly(monkeypatch)


def compare(machine: Machine, model: nn.Module, args: Sequence[Tensor], devices: Sequence[str], **options: Any) -> None:
    """Run a model in stages under several schedules, and compare what the call returns at once with eager mode."""
    run = compiled(model, devices, **options)
    with torch.no_grad():
        right = model(*args)
        wanted = right.cpu()
        for seed in SEEDS:
            machine.seed(seed)
            result = run(*args)
            assert result.device == right.device
            torch.testing.assert_close(result.cpu(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("home", ["cpu", "cuda", "cuda:1"])
@pytest.mark.parametrize(
    "devices",
    [
        ["cuda:0"],
        ["cuda"],
        ["cuda:0", "cuda:1"],
        ["cuda", "cuda:1"],
        ["cuda:0", "cuda:1", "cuda:2", "cuda:3"],
        ["cuda:0", "cuda:1", "cuda:0", "cuda:1"],
        ["cuda:0", "cpu", "cuda:1"],
    ],
    ids=",".join,
)
def test_a_chain_anywhere(machine: Machine, placed: Placed, home: str, devices: list[str]) -> None:
    compare(machine, Chain(max(2, len(devices))).to(home), (rows(8).to(home),), devices)
    # Equal stages on one device share their code.
    assert set().union(*placed) == {"cuda:0" if device == "cuda" else device for device in devices}


class AddsConstant(nn.Module):
    """Two layers, and something that is made in the second stage."""

    def __init__(self, constant: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.constant = layer(), layer(), constant

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.second(y) + self.constant(x, y) + x


CONSTANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the input's device": lambda x, y: torch.ones(WIDTH, device=x.device),
    "an activation's device": lambda x, y: torch.ones(WIDTH, device=y.device),
    "text": lambda x, y: torch.ones(WIDTH, device="cuda:0"),
    "text without an index": lambda x, y: torch.ones(WIDTH, device="cuda"),
    "to": lambda x, y: torch.ones(WIDTH).to(x.device),
    "to text": lambda x, y: torch.ones(WIDTH).to("cuda:0"),
    "to by keyword": lambda x, y: torch.ones(WIDTH).to(device="cuda:0"),
    "cuda": lambda x, y: torch.ones(WIDTH).cuda(),
    "cuda of a number": lambda x, y: torch.ones(WIDTH).cuda(0),
    "new_ones": lambda x, y: x.new_ones(WIDTH),
    "new_zeros of an activation": lambda x, y: y.new_zeros(8, WIDTH),
    "tensor": lambda x, y: torch.tensor([1.0], device=x.device),
    "a scalar on the CPU": lambda x, y: torch.tensor(2.0),
    "ones_like": lambda x, y: torch.ones_like(x),
    "type_as": lambda x, y: torch.ones(WIDTH).type_as(x),
}


@pytest.mark.parametrize("devices", [["cuda:0", "cuda:1"], ["cuda:2", "cuda:0"]], ids=",".join)
@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS)
def test_a_constant_in_a_stage(
    machine: Machine, placed: Placed, constant: Callable[[Tensor, Tensor], Tensor], devices: list[str]
) -> None:
    model = AddsConstant(constant).to("cuda:0")
    compare(machine, model, (rows(8).to("cuda:0"),), devices)
    assert placed == [{device} for device in devices]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = layer(), layer(), torch.tensor(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) * self.scale)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return self.second(torch.relu(self.first(x)))


class Strided(nn.Module):
    """A stage hands a transposed tensor to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)).t()
        return self.second(y.t() + 1.0) + y.contiguous().t()


class Other(nn.Module):
    """An input on the CPU, while the model is on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) + y.to(x.device)


@pytest.mark.parametrize("model", [Scaled, Autocast, Strided])
@pytest.mark.parametrize("devices", [["cuda:0", "cuda:1"], ["cuda:2", "cuda:1"]], ids=",".join)
def test_a_model_of_two_stages(machine: Machine, placed: Placed, model: type[nn.Module], devices: list[str]) -> None:
    compare(machine, model().to("cuda:0"), (rows(8).to("cuda:0"),), devices)
    assert len(placed) == 2


def test_an_input_on_the_cpu(machine: Machine, placed: Placed) -> None:
    compare(machine, Other().to("cuda:0"), (rows(8).to("cuda:0"), rows(8)), ["cuda:0", "cuda:1"])
    assert placed == [{"cuda:0"}, {"cuda:1", "cpu"}]


class ByHand(nn.Module):
    """Two layers that the model moves between itself."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.first, self.second = layer().to(first), layer().to(second)
        self.place = second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).to(self.place))


@pytest.mark.parametrize("devices", [["cuda:0", "cuda:1"], ["cuda:0", "cuda:2"], ["cuda:3"]], ids=",".join)
@pytest.mark.parametrize("places", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0"), ("cuda:0", "cpu")], ids=",".join)
def test_a_model_placed_by_hand(
    machine: Machine, placed: Placed, places: tuple[str, str], devices: list[str]
) -> None:
    with warnings.catch_warnings():
        if "cpu" in places:
            warnings.filterwarnings("ignore", ".* on the CPU", PartitionWarning)
        compare(machine, ByHand(*places), (rows(8).to(places[0]),), devices)


def test_microbatches(machine: Machine, placed: Placed) -> None:
    x = rows(8).to("cuda:0")
    torch._dynamo.mark_dynamic(x, 0)
    compare(machine, Chain(4).to("cuda:0"), (x,), ["cuda:0"], microbatches=2)


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "pageable"])
@pytest.mark.parametrize("devices", [["cuda:0"], ["cuda:0", "cuda:1"], ["cuda:0", "cpu"]], ids=",".join)
def test_the_host_may_write_its_input_and_read_its_result_at_once(
    machine: Machine, placed: Placed, devices: list[str], pinned: bool
) -> None:
    model = Chain(4)
    run = compiled(model, devices)
    with torch.no_grad():
        for seed in range(12):
            machine.seed(seed)
            x = rows(8).pin_memory() if pinned else rows(8)
            right = model(x)
            result = run(x)
            x.zero_()
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-4)
