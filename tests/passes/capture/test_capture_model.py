"""A captured graph has the user's names, and capturing changes nothing."""

from __future__ import annotations

import gc
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fx_partition.backends.lowering.dynamo_graph import capture_dynamo
from fx_partition.common.errors import PartitionError
from fx_partition.passes.api import plan
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_of_garbage_is_as_it_was(collects: bool) -> None:
    class Seen(Net):
        def forward(self, x: Tensor) -> Tensor:
            assert not gc.isenabled()
            if x.shape[1] == 3:
                raise RuntimeError("no such width")
            return super().forward(x)

    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        capture(Seen(), torch.zeros(4, 8))
        assert gc.isenabled() is collects
        with pytest.raises(RuntimeError, match="no such width"):
            capture(Seen(), torch.zeros(4, 3))
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


def test_dims_by_input_name() -> None:
    batch = {"x": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(Net(), (torch.zeros(4, 8),), dynamic_shapes=batch)
    assert list(capture(program).dims) == ["x.0"]
    traced = torch.fx.symbolic_trace(Net())
    assert list(capture(traced, torch.zeros(4, 8), batch).dims) == ["x.0"]
    assert capture(traced, torch.zeros(4, 8)).dims == {}


def test_weights_of_an_attribute_graph_are_static() -> None:
    """Only dimensions that the caller names are symbols; a parameter's never are."""

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(16, 8))

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.embedding(ids, self.table)

    captured = capture(torch.fx.symbolic_trace(Lookup()), torch.zeros(3, dtype=torch.long))
    symbolic = {n.name for n, v in captured.values.items() for s in v.shape if isinstance(s, torch.SymInt)}
    assert symbolic == set()
    assert analyze_memory(captured).symbols.hints == {}


def test_an_example_that_is_a_view_has_the_footprint_of_its_own_rows() -> None:
    model = torch.nn.Embedding(30, 8)
    rows = torch.zeros(8, 5, dtype=torch.long)
    own, view = (plan(model, x, cache_bytes="1MiB").max_bytes for x in (rows[:2].clone(), rows[:2]))
    assert own == view < 4096


def test_a_data_dependent_index_is_planned_or_refused_by_name() -> None:
    """Fake tensors of torch 2.13 do not take it, those of 2.14 do."""

    def pick(x: Tensor, table: Tensor) -> Tensor:
        return table[x.mean().long()]

    graph = torch.fx.symbolic_trace(pick)
    try:
        assert plan(graph, (torch.ones(4), torch.ones(3, 3)), cache_bytes="1MiB").num_partitions == 1
    except PartitionError as error:
        assert re.search(r"getitem has a data-dependent shape.*torch\.export", str(error))


def test_planning_a_dynamo_graph_adds_no_guard_and_compiles_once() -> None:
    model = Net()
    plans = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        captured = capture_dynamo(gm, inputs)
        assert set(captured.names.values()) >= {"x", "a.weight", "b.bias"}
        env = next(v.node.shape_env for v in captured.dims.values())
        before = len(env.guards), dict(env.replacements), dict(env.axioms)
        plan = make_plan(captured, analyze_memory(captured), Request.check(600))
        plan.largest("x.0")
        plan.to_json()
        assert (len(env.guards), dict(env.replacements), dict(env.axioms)) == before
        plans.append(plan)
        return gm.forward

    counters.clear()
    compiled = torch.compile(model, backend=backend)
    for batch in (4, 2, 9, 100):
        x = torch.randn(batch, 8)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), model(x))
    assert len(plans) == 1 and counters["stats"]["unique_graphs"] == 1
    assert list(plans[0].symbols.dims) == ["x.0"] and plans[0].num_partitions >= 2
