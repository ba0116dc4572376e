"""inductor's code for each stage is lowered to cubins and launched on the stage's own device and stream."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fx_partition

from .machine import Machine
from .models import compiled
from .plugin import LAUNCHES
from .triton_stand_in import Launch

WIDTH = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.linear(self.norm(x)))


@pytest.fixture
def launches(request: pytest.FixtureRequest) -> list[Launch]:
    """The launches of Triton's kernels from here on."""
    found = request.config.stash[LAUNCHES]
    found.clear()
    return found


def check(launches: Sequence[Launch], devices: Sequence[int]) -> None:
    """Each kernel was launched with its own device as the current one, on arguments of that device."""
    assert launches
    assert {launch.device for launch in launches} == set(devices)
    assert [launch for launch in launches if not launch.devices <= {launch.device}] == []


def test_stages_in_line(machine: Machine, launches: list[Launch]) -> None:
    model = nn.Sequential(*(Block() for _ in range(4))).to("cuda:0").eval()
    x = torch.randn(16, WIDTH, device="cuda:0")
    run = compiled(model, ["cuda:0", "cuda:1"])
    with torch.no_grad():
        run(x)
        launches.clear()
        assert run(x).device == x.device
    check(launches, [0, 1])


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_stages_of_a_pipeline(machine: Machine, launches: list[Launch], graphs: bool) -> None:
    model = nn.Sequential(*(Block() for _ in range(4))).to("cuda:0").eval()
    x = torch.randn(16, WIDTH, device="cuda:0")
    with torch.no_grad(), fx_partition.pipeline(
        model, (x,), devices=["cuda:0", "cuda:1"], cuda_graphs=graphs, l2_persistence=False
    ) as pipe:
        for _ in range(4):
            pipe(x)
        check(launches, [0, 1])
        if not graphs:  # else also on the streams of the slots that capture requests
            assert len({launch.stream for launch in launches if launch.device == 1}) == 1
        launches.clear()
        with machine.counting(0) as zero, machine.counting(1) as one:
            pipe(x)
    assert bool(launches) != graphs
    assert (zero.get("graph_launches", 0), one.get("graph_launches", 0)) == ((1, 0) if graphs else (0, 0))
