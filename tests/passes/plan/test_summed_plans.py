"""``footprint="sum"``: the sizes of layers, weight + activation + workspace, added up as the paper does."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim
from zoo.captured import captured_family

import fx_partition
from fx_partition import Plan
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.symbolic_sizes import evaluate
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.verify.check import find_faults


class Layers(nn.Module):
    """Linear layers of one size."""

    def __init__(self, count: int = 6, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


LAYER = 64 * 64 * 4 + 8 * 64 * 4  # the weight, and a result of 8 rows
X = torch.zeros(8, 64)


@pytest.mark.parametrize("algorithm", ["greedy", "dp"])
@pytest.mark.parametrize("held", [1, 2, 3, 5])
def test_layers_of_one_size_go_into_partitions_as_the_paper_packs_them(algorithm: str, held: int) -> None:
    budget = held * LAYER + 100
    plan = fx_partition.plan(Layers(), X, cache_bytes=budget, footprint="sum", algorithm=algorithm)
    sizes = [len(p.nodes) for p in plan.partitions]
    assert len(sizes) == -(-6 // held) and plan.spill_bytes == 0
    assert [p.total_bytes for p in plan.partitions] == [LAYER * n for n in sizes]
    if algorithm == "greedy":
        assert sizes == [held] * (6 // held) + ([6 % held] if 6 % held else [])


def layer_sizes(memory: GraphMemory) -> list[tuple[dict[int, int], int]]:
    """Return, for each step, the bytes that it reads of each weight, and the bytes that it makes and allocates."""
    numbers = memory.symbols.bind()
    made = [0] * len(memory.steps)
    for value in memory.values:
        if value.made_at >= 0:
            made[value.made_at] += evaluate(value.bytes, numbers)
    found = []
    for step, own in zip(memory.measured_at(numbers).steps, made, strict=True):
        weights = {weight: evaluate(size, numbers) for weight, size in step.weights.items()}
        found.append((weights, own + max(0, *(evaluate(w, numbers) for w in step.workspace))))
    return found


def added_up(memory: GraphMemory, names: tuple[str, ...]) -> int:
    """Return the size of a partition: each weight once at most, everything else of each step."""
    sizes = dict(zip((step.node for step in memory.steps), layer_sizes(memory), strict=True))
    numbers = memory.symbols.bind()
    weights: dict[int, int] = {}
    total = 0
    for name in names:
        read, own = sizes[name]
        total += own
        for weight, size in read.items():
            weights[weight] = weights.get(weight, 0) + size
    return total + sum(min(size, evaluate(memory.weight_bytes[w], numbers)) for w, size in weights.items())


@pytest.mark.parametrize("name", ["mlp", "gpt2", "mobilenetv2", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("algorithm", ["greedy", "dp"])
def test_partitions_of_models_are_sums_of_their_steps(name: str, algorithm: str) -> None:
    captured, memory = captured_family(name)
    whole = make_plan(captured, memory, Request.check(2**40, footprint="sum")).max_bytes
    for options in ({}, {"devices": 3}, *([{"objective": "traffic"}] if algorithm == "dp" else [])):
        plan = make_plan(
            captured, memory, Request.check(whole // 4, footprint="sum", algorithm=algorithm, **options)
        )
        assert find_faults(captured, plan) == []
        assert Plan.from_json(plan.to_json()) == plan
        for p in plan.partitions:
            assert p.total_bytes == added_up(memory, p.nodes)
            assert p.total_bytes == p.footprint(plan.numbers())
            assert p.total_bytes == p.weight_bytes + p.state_bytes + p.activation_bytes + p.workspace_bytes


def test_no_boundaries_are_better() -> None:
    """Compare with all boundaries of a small graph: fewest partitions, then the smallest maximum."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow, self.back = nn.Linear(16, 96), nn.Linear(96, 8), nn.Linear(8, 96)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.wide(x))
            return torch.sigmoid(self.back(self.narrow(h)) + h) @ self.wide.weight

    program = torch.export.export(Model(), (torch.zeros(5, 16),))
    memory = analyze_memory(capture(program))
    names = [step.node for step in memory.steps]
    for budget in (9_000, 12_000, 15_000, 20_000):
        plan = fx_partition.plan(program, cache_bytes=budget, footprint="sum")
        assert not plan.oversize
        best = min(
            (len(ends) + 1, max(added_up(memory, tuple(names[a:b])) for a, b in pairwise([0, *ends, len(names)])))
            for count in range(len(names))
            for ends in combinations(range(1, len(names)), count)
            if all(added_up(memory, tuple(names[a:b])) <= budget for a, b in pairwise([0, *ends, len(names)]))
        )
        assert (plan.num_partitions, plan.max_bytes) == best


def test_the_sum_is_never_less_than_the_peak_without_inputs_and_says_so() -> None:
    plan = fx_partition.plan(Layers(), X, cache_bytes="1MiB", footprint="sum")
    peak = fx_partition.plan(Layers(), X, cache_bytes="1MiB")
    assert plan.max_bytes == 6 * LAYER > peak.max_bytes
    text = fx_partition.report(plan)
    assert "as if nothing were freed" in text and 'footprint="peak"' in text
    assert "as if nothing were freed" not in fx_partition.report(peak)


def test_sums_are_symbolic() -> None:
    plan = fx_partition.plan(
        Layers(), X, cache_bytes="1MiB", dynamic_shapes=({0: Dim("batch", min=2, max=10**6)},), footprint="sum"
    )
    (partition,) = plan.partitions
    (symbol,) = plan.symbols.hints
    assert partition.footprint(plan.numbers({"x.0": 100})) == 6 * (64 * 64 * 4 + 100 * 64 * 4)
    assert isinstance(symbol, sympy.Symbol)
    rows = plan.largest("x.0")
    assert 6 * (64 * 64 * 4 + rows * 256) <= 2**20 < 6 * (64 * 64 * 4 + (rows + 1) * 256)


def test_split_and_backend_take_it() -> None:
    model = Layers()
    cut = fx_partition.split(model, X, cache_bytes=2 * LAYER, footprint="sum")
    assert cut.plan.num_partitions == 3 and torch.equal(cut(X + 1), model(X + 1))
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 2 * LAYER, "footprint": "sum"})
    with torch.no_grad():
        torch.testing.assert_close(fast(X + 1), model(X + 1))
