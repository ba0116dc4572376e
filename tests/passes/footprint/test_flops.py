"""The operations of nodes are those that torch counts, symbolic, and also for operators of CPUs alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.symbolic_sizes import evaluate
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.flops import flops_by_node


def total(model: nn.Module, x: torch.Tensor, shapes: object = None, **bind: int) -> int:
    captured = capture(model, x, shapes)
    symbols = analyze_memory(captured).symbols
    dims = {name.replace("_", "."): size for name, size in bind.items()}
    return sum(evaluate(flops, symbols.bind(dims)) for flops in flops_by_node(captured, symbols).values())


def test_operations_stay_symbolic() -> None:
    model, shapes = nn.Linear(16, 32), {"input": {0: torch.export.Dim("batch", min=2)}}
    assert total(model, torch.randn(4, 16), shapes) == 2 * 4 * 16 * 32
    assert total(model, torch.randn(4, 16), shapes, input_0=100) == 2 * 100 * 16 * 32


def test_recurrent_layers_and_the_fast_path_of_encoders_count() -> None:
    lstm = nn.LSTM(16, 32, num_layers=2)
    first, second = 4 * 32 * (16 + 32), 4 * 32 * (32 + 32)
    with torch.no_grad():
        assert total(lstm, torch.randn(5, 3, 16)) == 2 * 5 * 3 * (first + second)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    products = 2 * 3 * 16 * (4 * 64 * 64 + 2 * 64 * 128) + 4 * 3 * 16 * 16 * 64
    with torch.no_grad():
        assert total(layer, torch.randn(3, 16, 64)) == products


@pytest.mark.parametrize("dynamic", [True, None])
def test_graphs_of_dynamo_with_scalars_as_tensors(dynamic: bool | None) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(gm: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(gm)
        return gm

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(10)).eval()
    x = torch.randn(4, 3, 9, 9)
    model(x)
    torch.compile(model, backend=keep, dynamic=dynamic)(x)
    captured = capture(graphs[0])
    symbols = analyze_memory(captured).symbols
    found = sum(evaluate(flops, symbols.bind()) for flops in flops_by_node(captured, symbols).values())
    assert found == 2 * 4 * (8 * 7 * 7 * 27 + 8 * 7 * 7 * 10)
