"""The benchmark's scorer and the plan's own figures, which share no code, agree byte for byte."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from zoo import FAMILIES

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.partitioner.build_chain import lay_out

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from peers.scorer import Score, Scorer

WIDTH = 64
LINEAR = 4 * (WIDTH * WIDTH + WIDTH)
ROW = 4 * WIDTH
QUICK = ["gpt2", "llama", "wav2vec2", "unet"]
SLOW = ["swin", "mobilenetv2"]


def export(model: nn.Module, *args: Tensor, **kwargs: object) -> torch.fx.GraphModule:
    module = torch.export.export(model.eval(), args, kwargs).module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return module


def workspace_of(gm: torch.fx.GraphModule) -> dict[str, int]:
    captured = capture(gm)
    memory = analyze_memory(captured)
    atoms = find_atoms(captured, memory)
    ordered = memory.reordered(atoms.order)
    chain = lay_out(ordered, atoms, memory.symbols.bind(None))
    return dict(zip((step.node for step in ordered.steps), chain.workspace.tolist(), strict=True))


def check_plans(gm: torch.fx.GraphModule, budgets: tuple[str, ...]) -> list[int]:
    """Score a plan for each budget; the numbers of partitions."""
    scorer = Scorer(gm, workspace_of(gm))
    counts = []
    for budget in budgets:
        plan = fx_partition.plan(gm, cache_bytes=budget)
        score = scorer.score({node: part.index for part in plan.partitions for node in part.nodes})
        assert score.footprints == tuple(part.total_bytes for part in plan.partitions)
        assert (score.max_bytes, score.cut_bytes, score.back_edges) == (plan.max_bytes, plan.cut_bytes, 0)
        assert score.fits(plan.budget_bytes) == plan.fits()
        counts.append(plan.num_partitions)
    return counts


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_scorer_agrees_with_the_plan_on_the_zoo(name: str) -> None:
    family = FAMILIES[name]
    args, kwargs = family.inputs(batch=2)
    counts = check_plans(export(family.build(), *args, **kwargs), ("128KiB", "512KiB", "64MiB"))
    assert counts[0] > 1 and counts[-1] == 1


def test_state_and_weights_of_one_storage() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.randn(2 * WIDTH * WIDTH)
            self.a = nn.Parameter(flat[: WIDTH * WIDTH].view(WIDTH, WIDTH))
            self.b = nn.Parameter(flat[WIDTH * WIDTH :].view(WIDTH, WIDTH))
            self.register_buffer("seen", torch.zeros(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            y = (x @ self.a).relu()
            self.seen.add_(y.sum(0))
            return (y @ self.b.t()) @ self.a

    counts = check_plans(export(Model(), torch.randn(4, WIDTH)), ("20KiB", "40KiB"))
    assert counts == [3, 1]


def test_an_input_that_is_written_is_state() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, cache: Tensor) -> Tensor:
            y = self.first(x)
            cache.copy_(y)
            return self.last((y + cache).relu()).repeat(64, 1)  # the peak, with the cache: nobody touches it any more

    counts = check_plans(export(Model(), torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ("90KiB", "200KiB"))
    assert counts == [2, 1]


def three_linears() -> tuple[Scorer, list[str]]:
    gm = export(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3))), torch.randn(1, WIDTH))
    names = [node.name for node in gm.graph.nodes if node.op == "call_function"]
    assert len(names) == 3
    return Scorer(gm, {names[1]: 100}), names


def test_figures_by_hand() -> None:
    scorer, (first, second, third) = three_linears()
    score = scorer.score({first: 0, second: 0, third: 1})
    # input, two outputs and the scratch of the second, but the input is gone by then; then one received and one made
    assert score == Score((2 * LINEAR + 2 * ROW + 100, LINEAR + 2 * ROW), ROW, 0)
    assert score.fits(2 * LINEAR + 2 * ROW + 100) and not score.fits(2 * LINEAR + 2 * ROW + 99)


def test_a_view_of_a_weight_is_wherever_it_is_needed() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            turned = self.weight.t()
            return (x @ turned) @ turned

    gm = export(Model(), torch.randn(1, WIDTH))
    turned, first, second = [node.name for node in gm.graph.nodes if node.op == "call_function"]
    scorer = Scorer(gm, {})
    weight = 4 * WIDTH * WIDTH
    score = scorer.score({turned: 1, first: 0, second: 1})
    assert score == Score((weight + 2 * ROW, weight + 2 * ROW), ROW, 0)
    assert scorer.score({turned: 0, first: 1, second: 1}).footprints == (0, weight + 2 * ROW)


def test_one_tensor_of_several_crosses_alone() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            values, indices = x.topk(WIDTH // 2)
            return values + 1, indices + 1

    gm = export(Model(), torch.randn(1, WIDTH))
    topk, values, _, add, _ = [node.name for node in gm.graph.nodes if node.op == "call_function"]
    assert Scorer(gm, {}).score({topk: 0, values: 1, add: 1}).cut_bytes == ROW // 2


def test_partitions_that_interleave_cannot_be_run() -> None:
    scorer, (first, second, third) = three_linears()
    score = scorer.score({first: 0, second: 1, third: 0})
    assert score.back_edges == 1 and not score.fits(1 << 30)
    assert score.num_partitions == 2 and score.cut_bytes == 2 * ROW


def test_partitions_may_be_runs_of_another_order() -> None:
    class Fork(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = x + 1, x + 2
            return b * 2, a * 2

    gm = export(Fork(), torch.randn(1, WIDTH))
    names = [node.name for node in gm.graph.nodes if node.op == "call_function"]
    scorer = Scorer(gm, {})
    interleaved = scorer.score(dict(zip(names, (0, 1, 1, 0), strict=True)))
    assert (interleaved.back_edges, interleaved.cut_bytes) == (0, 0)
    numbered_backwards = scorer.score(dict(zip(names, (7, 3, 3, 7), strict=True)))
    assert numbered_backwards == interleaved
    # The first to appear needs what the second makes, and not the other way round: they change places.
    swapped = scorer.score(dict(zip(names, (0, 1, 0, 0), strict=True)))
    assert (swapped.back_edges, swapped.cut_bytes) == (0, ROW)
