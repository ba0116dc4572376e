"""The planned memory of inductor's code agrees with the measured one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fx_partition.backends.lowering.dynamo_graph import capture_dynamo
from fx_partition.backends.lowering.torch_internals import compile_part
from fx_partition.backends.measure.peak_allocation import allocated_bytes
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph, value_of
from fx_partition.passes.capture.symbolic_sizes import Size
from fx_partition.passes.constraints.atoms import Atoms, find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.inductor.fused_footprint import fuse
from fx_partition.passes.partitioner.build_chain import lay_out
from fx_partition.passes.partitioner.interval_footprint import interval

ROWS, WIDTH = 64, 128
VALUE = ROWS * WIDTH * 4
CPU = torch.device("cpu")
SMALL = 1024  # statistics of norms, numbers


def traced(function: Callable[..., Any], *inputs: Tensor, dynamic: bool = False) -> tuple[CapturedGraph, Sequence[Any]]:
    """Return the Dynamo graph of a call, and the real inputs of the graph."""
    found: list[tuple[CapturedGraph, Sequence[Any]]] = []

    def backend(gm: torch.fx.GraphModule, real: Sequence[Any]) -> Any:
        found.append((capture_dynamo(gm, real), list(real)))
        return gm.forward

    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic)(*inputs)
    ((captured, real),) = found
    return captured, real


def footprint(memory: GraphMemory, bind: dict[str, int] | None = None) -> int:
    """Return activation and workspace of the whole graph, without the caller's inputs."""
    n = len(memory.steps)
    chain = lay_out(memory, Atoms((), tuple(range(n + 1))), memory.symbols.bind(bind))
    chain.value_bytes[chain.value_def < 0] = 0
    held = interval(chain, 0, n)
    return held.activation + held.workspace


def planned_and_measured(function: Callable[..., Any], *inputs: Tensor) -> tuple[int, int]:
    """Return the bytes of the whole graph under inductor: as planned, and as measured in a call."""
    captured, real = traced(function, *inputs)
    memory, _ = fuse(captured, analyze_memory(captured), [0])
    fakes = [value_of(node) for node in captured.gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        call = compile_part(copy.deepcopy(captured.gm), fakes, {})
        measured = allocated_bytes(lambda: call(*real), CPU)
    return footprint(memory), measured


def atoms(function: Callable[..., Any], *inputs: Tensor) -> list[list[str]]:
    """Return the node names of each atom of the fused graph."""
    captured, _ = traced(function, *inputs)
    memory, together = fuse(captured, analyze_memory(captured))
    starts = find_atoms(captured, memory, together=together).starts
    return [[step.node for step in memory.steps[a:b]] for a, b in itertools.pairwise(starts)]


def x() -> Tensor:
    return torch.randn(ROWS, WIDTH)


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def test_a_pointwise_chain_is_one_buffer() -> None:
    planned, measured = planned_and_measured(lambda x: x.sin().mul(2).cos().add(1), x())
    assert planned == measured == VALUE


def test_a_diamond_is_one_buffer() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        return (y + 1) * (y - 1)

    planned, measured = planned_and_measured(function, x())
    assert planned == measured == VALUE


def test_a_returned_value_is_a_buffer() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.sin()
        return y, y * 2

    planned, measured = planned_and_measured(function, x())
    assert planned == measured == 2 * VALUE


def test_a_pointwise_result_takes_the_place_of_what_dies() -> None:
    planned, measured = planned_and_measured(nn.Sequential(linear(), nn.GELU(), linear()), x())
    assert planned == measured == 2 * VALUE


def test_a_softmax_has_a_maximum_and_a_sum_in_addition_to_its_result() -> None:
    planned, measured = planned_and_measured(lambda x: F.softmax(x * 2, -1), x())
    assert VALUE < planned < VALUE + SMALL
    assert abs(planned - measured) < SMALL


class Residual(nn.Module):
    """Branches over a layer norm, as in a transformer: the stream is the sum of the input and of every branch."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(branches))
        self.linears = nn.ModuleList(linear() for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in zip(self.norms, self.linears, strict=True):
            x = x + branch(norm(x))
        return x


@pytest.mark.slow
def test_a_deferred_residual_stream_keeps_its_branches_alive() -> None:
    planned, measured = planned_and_measured(Residual(4), x())
    assert abs(planned - measured) <= SMALL
    captured, _ = traced(Residual(4), x())
    assert footprint(analyze_memory(captured)) < measured - VALUE  # eager adds up as it goes


def test_convolutions_run_on_channels_last_copies() -> None:
    block = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3)).eval()
    planned, measured = planned_and_measured(block, torch.randn(2, 16, 32, 32))
    assert measured * 0.95 <= planned <= measured * 1.05


def test_a_weight_is_copied_to_channels_last_for_its_convolution() -> None:
    block = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, bias=False), nn.ReLU())
    planned, measured = planned_and_measured(block, torch.randn(2, 96, 4, 4))
    assert measured > 2 * 96 * 96 * 9 * 4  # once by inductor, once in oneDNN's blocks
    assert measured * 0.95 <= planned <= measured * 1.1


def test_a_returned_image_is_laid_out_as_eager_has_it() -> None:
    block = nn.Sequential(nn.Conv2d(4, 64, 1), nn.ReLU())
    planned, measured = planned_and_measured(block, torch.randn(2, 4, 32, 32))
    assert measured >= 2 * 2 * 64 * 32 * 32 * 4  # the channels-last result, and the dense one that is returned
    assert measured * 0.98 <= planned <= measured * 1.02


def test_operands_of_a_concatenation_are_written_into_it() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.sin(), y.cos()], 1)

    planned, measured = planned_and_measured(function, x(), x())
    assert planned == measured == 2 * VALUE


def test_gathered_matrices_of_a_thin_product_are_not_a_buffer() -> None:
    def function(weights: Tensor, index: Tensor, x: Tensor) -> Tensor:
        return torch.bmm(weights[index], x.unsqueeze(-1)).squeeze(-1)

    planned, measured = planned_and_measured(function, torch.randn(4, 64, 64), torch.arange(4), torch.randn(4, 64))
    assert planned == measured == 4 * 64 * 4


@pytest.mark.slow
def test_attention_takes_a_copy_of_a_computed_mask_for_each_layer() -> None:
    def function(q: Tensor, mask: Tensor) -> Tensor:
        bias = torch.where(mask, 0.0, -10.0)
        for _ in range(3):
            q = F.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        return q

    planned, measured = planned_and_measured(function, torch.randn(2, 2, 64, 16), torch.ones(2, 1, 64, 64).bool())
    assert measured * 0.9 <= planned <= measured * 1.15


def test_a_kernel_stays_together_and_external_kernels_part() -> None:
    model = nn.Sequential(linear(), nn.GELU(), linear(), nn.Sigmoid())
    assert [len(atom) for atom in atoms(model, x())] == [2, 2]
    assert [len(atom) for atom in atoms(lambda x: x.sin().mul(2).cos(), x())] == [3]


def test_values_inside_a_kernel_have_no_bytes() -> None:
    captured, _ = traced(lambda x: x.sin().mul(2).cos(), x())
    memory, _ = fuse(captured, analyze_memory(captured))
    assert [value.bytes for value in memory.values if value.made_at >= 0 and value.bytes] == [VALUE]


def test_weights_and_steps_stay_as_they_are() -> None:
    captured, _ = traced(nn.Sequential(linear(), nn.GELU(), linear()), x())
    before = analyze_memory(captured)
    after, _ = fuse(captured, before)
    assert [step.node for step in after.steps] == [step.node for step in before.steps]
    assert [step.weights for step in after.steps] == [step.weights for step in before.steps]


def test_sizes_stay_symbolic() -> None:
    model = nn.Sequential(linear(), nn.GELU(), linear(), nn.LayerNorm(WIDTH))
    captured, _ = traced(model, x(), dynamic=True)
    memory, _ = fuse(captured, analyze_memory(captured), [0])
    sizes: list[Size] = [value.bytes for value in memory.values]
    assert any(not isinstance(size, int) for size in sizes)
    (symbol,) = memory.symbols.hints
    for rows in (8, 200):
        still, _ = traced(model, torch.randn(rows, WIDTH))
        static, _ = fuse(still, analyze_memory(still), [0])
        assert footprint(memory, {symbol.name: rows}) == footprint(static)


def test_what_crosses_a_boundary_is_a_buffer_in_eagers_layout() -> None:
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)))
    captured, _ = traced(model, torch.randn(2, 16, 32, 32))
    eager = analyze_memory(captured)
    assert len(eager.steps) == 2
    whole, _ = fuse(captured, eager, [0])
    parts, _ = fuse(captured, eager, [0, 1])
    value = 2 * 16 * 32 * 32 * 4
    # The second convolution alone copies its input to channels last, and its result back.
    alone = lay_out(parts, Atoms((), (0, 1, 2)), {})
    assert interval(alone, 1, 2).activation + interval(alone, 1, 2).workspace >= 3 * value
    assert footprint(whole) < 4 * value


def test_a_plan_for_a_reordered_graph() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.relu(x @ x.t()) + torch.sigmoid(x).sum()

    captured = capture(torch.fx.symbolic_trace(function), x())
    eager = analyze_memory(captured)
    names = [step.node for step in eager.steps]
    order = [names.index(node) for node in ("sigmoid", "sum_1", "t", "matmul", "relu", "add")]
    memory, _ = fuse(captured, eager.reordered(order), [0, 2])
    assert [step.node for step in memory.steps][:2] == ["sigmoid", "sum_1"]
    assert footprint(memory) >= ROWS * ROWS * 4


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "scale": lambda x: x * 2 + 1,
    "softmax": lambda x: F.softmax(x, -1),
    "norm": lambda x: F.layer_norm(x, (WIDTH,)),
    "matmul": lambda x: x @ torch.ones(WIDTH, WIDTH),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
}


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(OPERATORS)), min_size=1, max_size=8), skips=st.booleans())
def test_no_more_than_eager_but_for_statistics_and_deferred_sums(names: list[str], skips: bool) -> None:
    def function(x: Tensor) -> Tensor:
        for name in names:
            y = OPERATORS[name](x)
            x = x + y if skips else y
        return x

    captured = capture(torch.fx.symbolic_trace(function), x())
    eager = analyze_memory(captured)
    for starts in ([], [0]):
        fused, _ = fuse(captured, eager, starts)
        deferred = 5 * VALUE if skips else 0  # a sum of up to five buffers is not computed until it is needed
        assert footprint(fused) <= footprint(eager) + deferred + 8 * SMALL
