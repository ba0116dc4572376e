"""Writes in the body of a higher-order operator to tensors outside of it are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fx_partition.backends.lowering.dynamo_graph import capture_dynamo
from fx_partition.passes.footprint import higher_order_writes
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory


class Model(nn.Module):
    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("count", torch.zeros(8))
        self._body = body

    def forward(self, x: Tensor) -> Any:
        y = self.up(x)
        out = checkpoint(lambda t: self._body(self, t), y, use_reentrant=False)
        return out + y * 3, self.count + 1, self.norm.running_mean + 1


def memory_of(body: Callable[[nn.Module, Tensor], Tensor]) -> GraphMemory:
    found: list[GraphMemory] = []

    def keep(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(analyze_memory(capture_dynamo(gm, inputs)))
        return gm.forward

    torch.compile(Model(body), backend=keep)(torch.randn(4, 8))
    (memory,) = found
    return memory


def written(memory: GraphMemory) -> set[str]:
    values = {memory.values[v].name for step in memory.steps for v in step.writes}
    return values | {memory.weight_names[w] for step in memory.steps for w in step.weight_writes}


def test_running_statistics_under_checkpointing_are_written() -> None:
    memory = memory_of(lambda model, t: model.norm(t))
    assert written(memory) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert {memory.weight_names[w] for w in memory.state} == written(memory)


def test_a_buffer_and_an_activation_that_a_body_writes() -> None:
    def count(model: nn.Module, t: Tensor) -> Tensor:
        model.count.add_(1)
        return t * 2

    assert written(memory_of(count)) == {"count"}
    assert written(memory_of(lambda _, t: t.add_(1) * 2)) == {"y"}
    assert written(memory_of(lambda _, t: (t * 2).relu_())) == set()


def plus_equals(model: nn.Module, t: Tensor) -> Tensor:
    count = model.count  # Dynamo does not trace that an attribute is set
    count += 1
    return t * 2


IN_PLACE = {
    "+=": (plus_equals, {"count"}),
    "inplace=True": (lambda _, t: nn.functional.relu(t, inplace=True) * 2, {"y"}),
    "True by position": (lambda _, t: nn.functional.relu(t, True) * 2, {"y"}),
    "& makes a new tensor": (lambda _, t: t * ((t > 0) & (t < 1)), set()),
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_body_writes_by_operators_of_any_spelling(how: str) -> None:
    body, expected = IN_PLACE[how]
    assert written(memory_of(body)) == expected


def test_a_body_that_does_not_run_on_fakes_is_taken_to_write_all_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(higher_order_writes, "observe", refuse)
    assert written(memory_of(lambda model, t: (t + model.count).relu_())) == {"y", "count"}
    assert written(memory_of(lambda model, t: (t + model.count).relu())) == set()
