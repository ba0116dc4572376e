"""Calls beyond the sizes for which a plan fits: a warning, or another plan."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from eager_stages import use_eager_stages
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.dynamo import graph_compiler
from fx_partition.backends.options.backend_options import Options
from fx_partition.common.errors import PartitionError, PartitionWarning

MODEL = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]).eval()


def compiled(monkeypatch: pytest.MonkeyPatch, model: Any = MODEL, **options: Any) -> Any:
    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    return torch.compile(model, backend="l2partition", dynamic=True, options={"cache_bytes": "40KiB", **options})


def test_the_first_call_beyond_the_plan_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = compiled(monkeypatch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        fast(torch.randn(8, 64))
        plan = fx_partition.compiled_graphs(fast)[0].plan
        (dim,) = plan.symbols.dims
        most = plan.largest(dim)
        fast(torch.randn(most, 64))
        x = torch.randn(most + 5, 64)
        with pytest.warns(PartitionWarning, match="beyond") as caught:
            assert torch.allclose(fast(x), MODEL(x), atol=1e-5)
        fast(torch.randn(most + 6, 64))
    (text,) = [str(w.message) for w in caught if issubclass(w.category, PartitionWarning)]
    over = [p.footprint(plan.numbers({dim: most + 5})) - p.budget_bytes for p in plan.partitions]
    spilled = sum(size for size in over if size > 0)
    assert f"is {most + 5} and may be at most {most}" in text
    assert float(re.findall(r"spilled ([0-9.]+) KiB", text)[0]) == pytest.approx(spilled / 1024, abs=0.01)


def test_a_graph_of_one_partition_has_a_range_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = compiled(monkeypatch, cache_bytes="100KiB")
    with torch.no_grad():
        fast(torch.randn(8, 64))
        assert fx_partition.compiled_graphs(fast)[0].plan.num_partitions == 1
        with pytest.warns(PartitionWarning, match="partition 0 spilled"):
            fast(torch.randn(800, 64))


def test_each_range_of_sizes_has_its_own_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    original = graph_compiler.compile_partitions

    def counted(context: Any, plan: fx_partition.Plan, *rest: Any) -> Any:
        function = original(context, plan, *rest)

        def run(*args: Any) -> Any:
            called.append(plan.num_partitions)
            return function(*args)

        return run

    monkeypatch.setattr(graph_compiler, "compile_partitions", counted)
    fast = compiled(monkeypatch, replan=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        for rows in (8, 40, 9, 41, 8):
            x = torch.randn(rows, 64)
            assert torch.allclose(fast(x), MODEL(x), atol=1e-5)
    assert called == [2, 4, 2, 4, 2]


def test_two_sizes_are_watched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x @ y) + 1

    fast = compiled(monkeypatch, model, cache_bytes="24KiB")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        fast(torch.randn(16, 32), torch.randn(32, 17))
        fast(torch.randn(48, 32), torch.randn(32, 19))
        with pytest.warns(PartitionWarning, match="is 49 and may be at most .* is 70 and may be at most"):
            fast(torch.randn(49, 32), torch.randn(32, 70))


def test_replan_is_a_choice() -> None:
    with pytest.raises(PartitionError, match="replan='yes' is neither True nor False"):
        Options.check({"replan": "yes"})
    with pytest.raises(PartitionError, match="replan=True needs microbatches=1"):
        Options.check({"replan": True, "cache_bytes": "40KiB", "microbatches": 2})


@pytest.mark.slow
def test_a_pipeline_warns_of_requests_beyond_its_plan() -> None:
    x = torch.randn(8, 64)
    shapes = {"input": {0: torch.export.Dim("rows")}}
    with fx_partition.pipeline(MODEL, (x,), cache_bytes="40KiB", dynamic_shapes=shapes, replicate=False) as pipe:
        pipe(x)
        with torch.no_grad(), pytest.warns(PartitionWarning, match="make a pipeline with example inputs of such sizes"):
            big = torch.randn(60, 64)
            assert torch.allclose(pipe(big), MODEL(big), atol=1e-5)
