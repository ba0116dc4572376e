"""Graphs in microbatches equal eager and compile once; graphs that mix rows are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch._dynamo
from test_families import TOLERANCE, budget, call, error, no_fallback
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from zoo import FAMILIES, mark_batch

from fx_partition import report
from fx_partition.backends.dynamo.compiled_graph import CompiledGraph
from fx_partition.backends.inline.whole_batch import WholeBatch
from fx_partition.backends.options.backend_options import Options
from fx_partition.common.errors import PartitionError
from fx_partition.passes.batching.microbatch_size import BatchSplitter, cheapest, even_sizes
from fx_partition.report.compiled_plans import _LIVE, compiled_graphs

QUICK = [("mlp", 2), ("mlp", "auto")]
SLOW = [
    *((name, count) for name in ("gpt2", "llama", "mobilenetv2", "unet") for count in (2, "auto")),
    ("resnet18", 3), ("bert", 3), ("t5", 2), ("mlp", 3), ("vit", 3),
]  # fmt: skip


def compiled(model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="l2partition", options=options)


def graph_of(model: nn.Module) -> CompiledGraph:
    (graph,) = compiled_graphs(model)
    assert isinstance(graph, CompiledGraph)
    return graph


class Counting(nn.Module):
    """Linear layers."""

    def __init__(self, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "count"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_families_equal_eager_at_even_uneven_and_small_batches_with_one_compile(name: str, count: int | str) -> None:
    family = FAMILIES[name]
    model = family.build()
    counters.clear()
    with torch._dynamo.config.patch(**family.dynamo_config), torch.no_grad(), no_fallback():
        run = compiled(model, cache_bytes=budget(model), microbatches=count)
        for batch in (8, 7, 2):
            found = call(family, run, mark_batch(family.inputs(batch)))
            expected = call(family, model, family.inputs(batch))
            assert error(found, expected) <= TOLERANCE
            assert [t.stride() for t in found] == [t.stride() for t in expected]
    graph = graph_of(model)
    assert graph.plan.num_partitions >= 3 if count != "auto" else graph.plan.num_partitions == 1
    assert counters["stats"]["unique_graphs"] == 1


def calls_of_stages(model: nn.Module, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, x: Tensor) -> list[int]:
    """The rows of each call of a compiled stage, in order; the model is compiled by this call."""
    from fx_partition.backends.lowering import compile_stages as module

    rows: list[int] = []
    compile_part = module.compile_part

    def recorded(*arguments: Any) -> Callable[..., Any]:
        function = compile_part(*arguments)

        def stage(*inputs: Any) -> Any:
            values = [value for value in inputs if isinstance(value, Tensor) and value.dim() == 2]
            rows.extend(value.shape[0] for value in values if value.shape != (64, 64))
            return function(*inputs)

        return stage

    monkeypatch.setattr(module, "compile_part", recorded)
    torch._dynamo.mark_dynamic(x, 0)
    run(x)
    return rows


@pytest.mark.parametrize("on_shortage", ["balance", "wrap"])
def test_every_stage_runs_all_microbatches_before_the_next(on_shortage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting()
    options: dict[str, Any] = {"cache_bytes": budget(model, 0.4), "microbatches": 3, "on_shortage": on_shortage}
    with torch.no_grad():
        run = compiled(model, **options)
        rows = calls_of_stages(model, run, monkeypatch, x := torch.randn(8, 64))
        assert rows == [3, 3, 2] * graph_of(model).plan.num_partitions
        assert torch.allclose(run(x), model(x), atol=1e-5)
        rows.clear()
        run(torch.randn(3, 64))  # the code was compiled for two rows or more, so that three run whole
        assert rows == [3] * graph_of(model).plan.num_partitions


def test_a_shortage_of_devices_wraps_stages_of_microbatches() -> None:
    model = Counting()
    with torch.no_grad(), no_fallback():
        run = compiled(model, cache_bytes=budget(model, 0.3), devices=2, on_shortage="wrap", microbatches=2)
        for batch in (6, 5):
            x = torch.randn(batch, 64)
            torch._dynamo.mark_dynamic(x, 0)
            assert torch.allclose(run(x), model(x), atol=1e-5)
    assert graph_of(model).plan.num_partitions > 2


class Narrow(nn.Module):
    """Little arithmetic on many rows: what the layers hand on is large, and their weights are small."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(width, width), nn.GELU())))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_auto_cuts_where_results_would_be_mapped_again_and_results_are_equal() -> None:
    model, x = Narrow(), torch.randn(1 << 20, 16)
    with torch.no_grad(), no_fallback():
        run = compiled(model, cache_bytes="1MiB", microbatches="auto")
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.allclose(run(x), model(x), atol=1e-5)
    graph = graph_of(model)
    assert graph.rows is not None and 1 << 10 < graph.rows < 1 << 19  # 64 MiB a value of all rows
    assert graph.plan.num_partitions == 1
    assert f"at most {graph.rows} rows" in report(model)


@pytest.mark.parametrize("make", [Counting, lambda: Convolutions(depth=2)])
def test_auto_leaves_whole_what_would_not_gain_and_says_so(make: Callable[[], nn.Module]) -> None:
    model = make()
    x = torch.randn(32, 64) if isinstance(model, Counting) else torch.randn(32, 16, 8, 8)
    with torch.no_grad(), no_fallback():
        run = compiled(model, cache_bytes="20KiB", microbatches="auto")
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.allclose(run(x), model(x), atol=1e-5)
    graph = graph_of(model)
    assert graph.rows is None and graph.plan.num_partitions == 1 and not graph.stages
    assert "The batch runs whole" in report(model)


class Convolutions(nn.Module):
    """Convolutions whose kernel is another one from 16 rows on, which a trace of 32 rows assumes."""

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
        self.layers = nn.Sequential(*(m for conv in convolutions for m in (conv, nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_what_the_trace_assumed_of_the_batch_does_not_hold_for_microbatches() -> None:
    model = Convolutions()
    assert torch.backends.nnpack.is_available()
    with torch.no_grad(), no_fallback():
        run = compiled(model, cache_bytes=12 << 10, microbatches=8)
        for batch, rows in ((32, 4), (30, 4), (19, 3)):
            x = torch.randn(batch, 16, 8, 8)
            torch._dynamo.mark_dynamic(x, 0)
            assert torch.allclose(run(x), model(x), atol=1e-5)
            graph = graph_of(model)
            assert graph.rows == 4 and graph.plan.num_partitions > 1
            (function,) = (f for f, other in _LIVE.items() if other is graph)
            blocks = function.__self__.blocks(batch)  # type: ignore[attr-defined]
            assert max(n for _, n in blocks) == rows and sum(n for _, n in blocks) == batch


def test_a_batch_that_no_cut_serves_runs_whole_in_code_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Convolutions()
    monkeypatch.setattr(BatchSplitter, "__call__", lambda *_: ())
    made: list[int] = []
    compile_one = WholeBatch._compile
    monkeypatch.setattr(WholeBatch, "_compile", lambda *arguments: made.append(1) or compile_one(*arguments))
    with torch.no_grad():
        run = compiled(model, cache_bytes=12 << 10, microbatches=2)
        for batch, compiles in ((9, 1), (4, 1), (20, 2), (32, 2)):  # the first for fewer than 16 rows
            x = torch.randn(batch, 16, 8, 8)
            torch._dynamo.mark_dynamic(x, 0)
            assert torch.allclose(run(x), model(x), atol=1e-5)
            assert len(made) == compiles


# ---- The choice of rows


class _Plan:
    """A plan that fits for up to ``fits`` rows."""

    def __init__(self, rows: int, fits: int) -> None:
        self.rows, self._fits = rows, fits

    def largest(self, symbol: str) -> int:
        return self._fits


@pytest.mark.parametrize("batch", [2, 3, 17, 32, 100])
@pytest.mark.parametrize("fits", [0, 2, 11, 31, 1 << 31])
def test_the_cheapest_of_few_candidates_is_taken(batch: int, fits: int) -> None:
    asked: list[tuple[int, int]] = []

    def planner(number: int) -> Callable[[int], Any]:
        def plan_of(rows: int) -> Any:
            asked.append((number, rows))
            return _Plan(rows, fits)

        return plan_of

    def cost(plan: Any, rows: int) -> int:
        assert plan.rows == rows
        return abs(rows - 9)

    found = cheapest((planner(0), planner(1)), cost, "s0", batch)
    assert len(asked) == len(set(asked)) <= 4 * batch.bit_length()
    sizes = {rows for _, rows in asked}
    assert all(2 <= rows < batch for rows in sizes)
    if batch == 2:
        assert found is None and not asked
    else:
        assert found is not None and abs(found[1] - 9) == min(abs(rows - 9) for rows in sizes)
    if 2 <= fits < batch:
        assert any(rows <= fits and -(-batch // rows) == -(-batch // fits) for rows in sizes)


def test_sizes_are_even_and_guards_hold_for_each() -> None:
    assert [even_sizes(n, 3) for n in (9, 8, 7)] == [(3, 3, 3), (3, 3, 2), (3, 2, 2)]
    s = sympy.Symbol("s", positive=True, integer=True)
    cut = BatchSplitter((s,), (s,), None, 4, [sympy.Ge(s, 3)])
    assert cut(12) == ((0, 4), (4, 4), (8, 4))
    assert cut(10) == ((0, 4), (4, 3), (7, 3))
    assert cut(5) == ((0, 5),)  # not 3 and 2
    assert cut(2) == ()
    few = BatchSplitter((s,), (s,), 2, 4, [sympy.Lt(s, 4)])
    assert few(12) == ((0, 3), (3, 3), (6, 3), (9, 3))  # more than asked for, where the stages are for few rows alone
    t = sympy.Symbol("t", positive=True, integer=True)
    assert BatchSplitter((s, t), (s, t), 2, 4, [])(4, 6) == ()  # two inputs taken for one batch, and unlike


# ---- Refusals


def refused(model: Callable[..., Any], x: Tensor, **options: Any) -> str:
    torch._dynamo.mark_dynamic(x, 0)
    with pytest.raises((BackendCompilerFailed, PartitionError)) as raised:
        compiled(model, **{"cache_bytes": "20KiB", **options})(x)
    return str(raised.value)


def test_gradients_are_refused_with_the_way_out() -> None:
    text = refused(Counting(), torch.randn(6, 64), microbatches=2)
    assert "gradient" in text and "no_grad" in text and "microbatches=1" in text


def test_an_operator_that_mixes_rows_is_named() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Softmax(0))
    with torch.no_grad():
        text = refused(model, torch.randn(6, 64), microbatches=2)
    assert "softmax" in text and "works along the batch" in text and "microbatches=1" in text


def test_the_error_for_a_static_batch_says_how_to_make_it_symbolic() -> None:
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match="mark_dynamic"):
        torch.compile(Counting(), backend="l2partition", options={"cache_bytes": "20KiB", "microbatches": 2})(
            torch.randn(6, 64)
        )


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "many", None, [2]])
def test_values_that_are_not_a_number_of_microbatches_are_refused(value: Any) -> None:
    with pytest.raises(PartitionError, match='number of 1 or more nor "auto"'):
        Options.check({"cache_bytes": "1MiB", "microbatches": value})


def test_auto_needs_a_budget() -> None:
    with pytest.raises(PartitionError, match="cache_bytes"):
        Options.check({"microbatches": "auto"})


def test_the_former_option_keep_buffers_names_the_function() -> None:
    with pytest.raises(PartitionError, match=r"unknown option 'keep_buffers'; .* by fx_partition\.keep_buffers\(\)"):
        Options.check({"cache_bytes": "1MiB", "keep_buffers": True})
