"""Measured allocations of kernels are right and kept, and do not touch the caller's tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

import fx_partition
from fx_partition.backends.measure.peak_allocation import allocated_bytes
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.fake_tensors import allocation_sizes, new_fake_mode
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.op_effects import observe
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.workspace import kernel_memory, measured_scratch
from fx_partition.passes.workspace.kernel_call import BoundCall, KernelCall, Operand
from fx_partition.passes.workspace.kernel_memory import MOST_BYTES, in_new_thread, peak_bytes

CPU = torch.device("cpu")
#: Sizes and strides of input and weight of a transposed convolution, which takes scratch memory for each thread.
CONVOLUTION = [((2, 16, 256), (4096, 256, 1)), ((16, 8, 4), (32, 4, 1))]


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No figure of another test or process; the directory in which figures are kept."""
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_memory, "_peaks", {})
    return tmp_path / "kernel_memory"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[BoundCall]:
    """The calls that were run, in order."""
    found: list[BoundCall] = []
    measure = kernel_memory._measured

    def recorded(call: BoundCall) -> int | None:
        found.append(call)
        return measure(call)

    monkeypatch.setattr(kernel_memory, "_measured", recorded)
    return found


def sort_of(elements: int) -> BoundCall:
    """A sort, which takes an arange of as many int64 in addition to the values and the indices that it returns."""
    operand = Operand((elements,), (1,), torch.float32, 0)
    leaves, structure = pytree.tree_flatten(((operand,), {"stable": True}))
    return BoundCall(torch.ops.aten.sort.stable, tuple(leaves), structure, 12 * elements, 8 * elements, elements)


def test_sizes_of_blocks_in_the_order_of_events() -> None:
    def call() -> Tensor:
        torch.empty(1000)
        return torch.empty(500)

    assert in_new_thread(lambda: allocation_sizes(call)) == [4000, -4000, 2000]


def test_the_peak_of_a_call_is_what_the_profiler_sees() -> None:
    x = torch.zeros(10_000)
    assert peak_bytes(sort_of(10_000)) == allocated_bytes(lambda: torch.sort(x, stable=True), CPU) >= 120_000


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_kernel_is_measured_on_as_many_threads_as_the_caller_has(threads: int) -> None:
    """A new thread has the number that the process started with, until torch is asked there."""
    operands = [Operand(sizes, strides, torch.float32, 0) for sizes, strides in CONVOLUTION]
    arguments = (*operands, None, (2,), (0,), (1,), True, (0,), 1)
    leaves, structure = pytree.tree_flatten((arguments, {}))
    call = BoundCall(torch.ops.aten.convolution.default, tuple(leaves), structure, 0, 0, 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert in_new_thread(lambda: kernel_memory._measured(call)) == kernel_memory._measured(call)
    finally:
        torch.set_num_threads(before)


def test_an_equal_call_is_run_once_in_a_process_and_on_a_machine(
    runs: list[BoundCall], nothing_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [peak_bytes(sort_of(size)) for size in (100, 200, 100)]
    assert len(runs) == 2 and first[0] == first[2] != first[1]
    assert len(list(nothing_kept.iterdir())) == 2
    monkeypatch.setattr(kernel_memory, "_peaks", {})  # as in another process
    assert [peak_bytes(sort_of(size)) for size in (100, 200, 100)] == first
    assert len(runs) == 2


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"bytes": -1}', '{"bytes": true}', '{"bytes": "8"}'])
def test_a_file_that_says_nothing_is_written_again(
    contents: str, runs: list[BoundCall], nothing_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = peak_bytes(sort_of(100))
    (kept,) = nothing_kept.iterdir()
    kept.write_text(contents)
    monkeypatch.setattr(kernel_memory, "_peaks", {})
    assert peak_bytes(sort_of(100)) == peak and len(runs) == 2
    assert json.loads(kept.read_text()) == {"bytes": peak}


def test_what_cannot_be_kept_is_measured_all_the_same(
    runs: list[BoundCall], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path / "file"))
    first, second = peak_bytes(sort_of(100)), peak_bytes(sort_of(100))
    assert first is not None and first == second and len(runs) == 1


def test_what_chooses_other_kernels_is_measured_apart(runs: list[BoundCall], monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that holds libraries to some kernels, another number of threads, and oneDNN switched off."""
    peak_bytes(sort_of(100))
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        peak_bytes(sort_of(100))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        peak_bytes(sort_of(100))
    finally:
        torch.set_num_threads(threads)
    with torch.backends.mkldnn.flags(enabled=False):
        peak_bytes(sort_of(100))
    assert len(runs) == 4
    peak_bytes(sort_of(100))
    assert len(runs) == 4


def test_modes_and_profilers_of_the_caller_are_neither_seen_nor_ended() -> None:
    expected = peak_bytes(sort_of(100))
    state = torch.get_rng_state()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.inference_mode():
        (torch.ones(8) + 1).sin()
        with torch.device("meta"), new_fake_mode(None), torch.autocast("cpu"):
            kernel_memory._peaks.clear()
            found = peak_bytes(sort_of(100))
        (torch.ones(8) + 1).cos()
    assert found == expected
    assert {"aten::sin", "aten::cos"} <= {event.name for event in profiler.events()}
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_too_large_is_not_run(runs: list[BoundCall]) -> None:
    assert peak_bytes(sort_of(MOST_BYTES // 20)) is None
    assert runs == []


def test_an_operator_that_refuses_its_operands_has_no_figure(nothing_kept: Path) -> None:
    operand = Operand((4,), (1,), torch.float32, 0)
    leaves, structure = pytree.tree_flatten(((operand, operand), {}))
    assert peak_bytes(BoundCall(torch.ops.aten.mm.default, tuple(leaves), structure, 0, 0, 0)) is None
    assert not list(nothing_kept.iterdir())


# ---- plans


def linear_of(rows: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(256, 256).bfloat16().eval(), torch.rand(rows, 256).bfloat16()


def real_workspace(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return allocated_bytes(lambda: model(x), CPU) - model(x).nbytes


@pytest.mark.parametrize("rows", [1, 16, 300])
def test_a_plan_has_what_the_kernels_of_this_machine_take(rows: int) -> None:
    model, x = linear_of(rows)
    plan = fx_partition.plan(model, x, cache_bytes="8MiB")
    assert plan.partitions[0].workspace_bytes == real_workspace(model, x)
    assert plan.estimated_workspace == ()


def test_the_models_own_tensors_are_not_touched() -> None:
    model, x = linear_of(16)
    kept = {name: (weight.clone(), weight._version) for name, weight in model.state_dict().items()}
    fx_partition.plan(model, x, cache_bytes="8MiB")
    assert all(torch.equal(w, kept[n][0]) and w._version == kept[n][1] for n, w in model.state_dict().items())


def test_a_dynamic_plan_is_measured_at_the_sizes_that_are_bound() -> None:
    """At others it follows the rule from there, so that it never falls when a size grows."""
    model, x = linear_of(16)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    for bind in (None, {"input.0": 100}):
        plan = fx_partition.plan(program, cache_bytes="8MiB", bind=bind)
        (partition,) = plan.partitions
        bound = 16 if bind is None else 100
        assert partition.workspace_bytes == real_workspace(*linear_of(bound))
        assert partition.footprint(plan.numbers()) == partition.total_bytes
        sizes = [partition.footprint(plan.numbers({"input.0": n})) for n in (2, bound, bound + 1, 1000, 4000)]
        assert sizes == sorted(sizes)
        assert Plan.from_json(plan.to_json()) == plan


def test_a_tight_budget_that_a_plan_keeps_holds_for_all_smaller_batches() -> None:
    model, x = linear_of(300)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    size = fx_partition.plan(program, cache_bytes="8MiB").max_bytes
    plan = fx_partition.plan(program, cache_bytes=size)
    assert plan.fits() and 300 <= plan.largest("input.0") < 4096


def test_a_model_without_memory_is_planned_as_the_real_one() -> None:
    model, x = linear_of(16)
    with torch.device("meta"):
        bare = nn.Linear(256, 256).bfloat16().eval()
    expected = fx_partition.plan(model, x, cache_bytes="8MiB")
    found = fx_partition.plan(bare, x.to("meta"), cache_bytes="8MiB")
    assert found.max_bytes == expected.max_bytes and found.estimated_workspace == ()


def test_what_is_not_measured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_memory, "MOST_BYTES", 1000)
    model, x = linear_of(16)
    plan = fx_partition.plan(model, x, cache_bytes="8MiB")
    assert plan.estimated_workspace == ("aten::addmm",)
    (step,) = analyze_memory(capture(model, x)).steps
    assert plan.partitions[0].workspace_bytes == max(step.workspace)  # as the rules say for this processor
    text = fx_partition.report(plan)
    assert "Estimated workspace" in text and "aten::addmm" in text
    assert Plan.from_json(plan.to_json()) == plan


def test_another_devices_kernels_are_not_measured_here() -> None:
    mode = new_fake_mode(ShapeEnv())
    with mode:
        x, w = (torch.empty(16, 16, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    found = observe(F.linear, (x, w), {}, mode).scratch
    assert found.kernels == () and found.unmeasurable == ("aten::mm",)


def test_fused_plans_are_measured_too(runs: list[BoundCall]) -> None:
    model, x = linear_of(16)
    plan = fx_partition.plan(model, x, cache_bytes="8MiB", footprint="fused")
    assert runs and plan.partitions[0].workspace_bytes == real_workspace(model, x)


def test_other_sizes_follow_the_rule_from_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sympy.Symbol("s0", positive=True, integer=True)
    monkeypatch.setattr(measured_scratch, "peak_bytes", lambda call: 100)
    operand = Operand((rows,), (1,), torch.float32, 0)
    call = KernelCall(torch.ops.aten.mm.default, (operand,), None, 4 * rows, 8 * rows, 0)
    assert measured_scratch.measured(call, {rows: 5}).subs(rows, 5) == 80
    assert measured_scratch.measured(call, {rows: 5}).subs(rows, 10) == 160


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("ONEDNN_MAX_CPU_ISA", "AVX512_CORE"), ("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ATEN_CPU_CAPABILITY", "default")],
)
def test_predictions_hold_for_kernels_of_other_processors(name: str, value: str) -> None:
    tests = Path(__file__).with_name("test_workspace_rules.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), "-k", "prediction"],
        env={**os.environ, name: value}, capture_output=True, text=True, check=False, cwd=tests.parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
