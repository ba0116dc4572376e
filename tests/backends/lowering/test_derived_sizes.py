"""A later stage computes its sizes from tensors that it receives, or receives them as numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition import PartitionError, PartitionWarning
from fx_partition.backends.streaming.program import Program, make_program
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph

ROWS = torch.export.Dim("rows", min=2, max=64)
PLAIN = ({0: ROWS},)
TWICE = ({0: 2 * ROWS},)
CORES = ["cores:0", "cores:1"]


class Pairs(nn.Module):
    """The second stage divides by the number of rows, which it derives from its inputs, and returns it too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        rows = x.shape[0]
        hidden = torch.relu(self.a(x).reshape(rows * 2, 32)).reshape(rows // 2, 2, 64)
        return self.b(hidden.sum(1)) / (rows + 1) + torch.arange(rows // 2)[:, None], rows


class Rows(Pairs):
    """The second stage takes a tensor of as many rows, and none of half of them."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        rows = x.shape[0]
        return self.b(torch.relu(self.a(x) * rows)) / rows, rows


class Pooled(Pairs):
    """No tensor of the second stage has the rows."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        rows = x.shape[0]
        return self.b(torch.relu(self.a(x) * rows).sum(0)) / rows, rows


def program(model: nn.Module, shapes: Any) -> Program:
    captured = capture(model, torch.randn(8, 64), shapes)
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check(None, tuple(CORES)))
    captured = planned_graph(captured, plan)
    return make_program(captured, cut(captured, plan), memory.written)


def test_stages_pass_tensors_only_where_their_shapes_determine_the_sizes() -> None:
    assert [step.has_tensors_only for step in program(Pairs().eval(), TWICE).steps] == [True, True]
    assert [step.has_tensors_only for step in program(Pooled().eval(), PLAIN).steps] == [False, False]
    texts = [[step.module.code for step in program(Pairs().eval(), TWICE).steps] for _ in range(2)]
    assert texts[0] == texts[1] and "sym_size" in texts[0][1]


def test_a_size_that_cannot_be_read_where_it_is_used_is_refused() -> None:
    with pytest.raises(PartitionError, match=r"stage 1 takes the size 2\*s\d+ \(sym_size_int\w*\), .* keep_together="):
        program(Pooled().eval(), TWICE)


@pytest.mark.parametrize(
    ("model", "shapes", "message"),
    [
        pytest.param(Pairs(), TWICE, None, marks=pytest.mark.slow),
        pytest.param(Rows(), TWICE, None, marks=pytest.mark.slow),
        (Pooled(), PLAIN, "its inputs or outputs include numbers"),
    ],
)
def test_a_stream_of_other_sizes_equals_eager(model: nn.Module, shapes: Any, message: str | None) -> None:
    def requests() -> Any:
        return (torch.randn(2 * rows, 64) for rows in (2, 3, 7))

    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", PartitionWarning)
        with fx_partition.pipeline(model.eval(), torch.randn(8, 64), devices=CORES, dynamic_shapes=shapes) as pipe:
            for x in requests():
                (found, rows), (expected, _) = pipe(x), model(x)
                assert rows == len(x)
                torch.testing.assert_close(found, expected)
            with pytest.raises(ValueError, match=r"shape \[7, 64\], and the graph takes \[2\*s|size 65 in dimension 0"):
                pipe(torch.randn(7 if shapes is TWICE else 65, 64))
    said = [str(warning.message) for warning in caught if issubclass(warning.category, PartitionWarning)]
    assert len(said) == (2 if message else 0) and all(message in text for text in said)
