"""A model through `fx_partition.pipeline` on several GPUs: one graph a request, for the listed sizes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.cuda.request_graph import RequestSlot
from fx_partition.backends.lowering import torch_internals
from fx_partition.common.errors import PartitionError, PartitionWarning

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices, as the software GPU has")

SIZE = 64
DEVICES = ["cuda:0", "cuda:1"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = torch.relu(layer(y)) + x
        return y


@pytest.fixture(autouse=True)
def eager_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run as they are written: what is tested is the order of their work."""
    monkeypatch.setattr(torch_internals, "compile_fx", lambda gm, inputs, config_patches=None: lambda *args: gm(*args))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The requests that ran as a graph."""
    found: list[Any] = []
    run = RequestSlot.run

    def watched(self: RequestSlot, key: Any, tensors: Any) -> Any:
        found.append(key)
        return run(self, key, tensors)

    monkeypatch.setattr(RequestSlot, "run", watched)
    yield found


def check(pipe: Any, model: nn.Module, device: str, rows: int) -> None:
    x = torch.randn(rows, SIZE)
    futures = [pipe.submit(x.to(device)) for _ in range(5)]
    with torch.no_grad():
        right = model(x)
    for future in futures:
        torch.testing.assert_close(future.result(timeout=60).cpu(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("move", [False, True])
def test_requests_of_the_example_s_sizes(launches: list[Any], device: str, move: bool) -> None:
    model = Residual().eval()
    copy = Residual().eval()
    copy.load_state_dict(model.state_dict())
    copy.to(device)
    example = torch.randn(4, SIZE).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        pipe = fx_partition.pipeline(copy, example, devices=DEVICES, l2_persistence=False, move=move)
    with pipe:
        before = len(launches)
        check(pipe, model, device, 4)
        assert len(launches) == before + 5


def test_a_list_of_sizes_for_dynamic_shapes(launches: list[Any]) -> None:
    model = Residual().eval()
    sizes = [torch.randn(rows, SIZE) for rows in (2, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        pipe = fx_partition.pipeline(
            model,
            torch.randn(4, SIZE),
            devices=DEVICES,
            l2_persistence=False,
            dynamic_shapes=({0: torch.export.Dim("rows", max=16)},),
            cuda_graphs=sizes,
        )
    with pipe:
        for rows, graphed in ((2, True), (3, False), (4, True), (8, True), (16, False)):
            launches.clear()
            check(pipe, model, "cpu", rows)
            assert len(launches) == (5 if graphed else 0)


def test_without_graphs(launches: list[Any]) -> None:
    model = Residual().eval()
    with fx_partition.pipeline(
        model, torch.randn(4, SIZE), devices=DEVICES, l2_persistence=False, cuda_graphs=False
    ) as pipe:
        check(pipe, model, "cpu", 4)
    assert launches == []


def test_random_numbers_are_as_before_after_warming_up() -> None:
    torch.manual_seed(3)
    right = torch.rand(4)
    model = Residual().eval()
    example = torch.zeros(4, SIZE)
    torch.manual_seed(3)
    with fx_partition.pipeline(model, example, devices=DEVICES, l2_persistence=False):
        assert torch.equal(torch.rand(4), right)


def test_inductor_s_graphs_inside_a_pipeline_are_refused() -> None:
    with pytest.raises(PartitionError, match=r"triton.cudagraphs"):
        fx_partition.pipeline(
            Residual().eval(), torch.zeros(4, SIZE), devices=DEVICES, inductor={"triton.cudagraphs": True}
        )
