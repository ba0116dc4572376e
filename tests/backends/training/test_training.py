"""Stages for torch.distributed.pipelining: ten steps by a schedule on two ranks give what one process gives.

Ranks are processes that import torch again, so each test gives one pair of them as much as it can.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes.run_ranks import run_ranks
from rank_processes.training_runs import CASES, ROWS, Skips, Trained, alone, mean_square, plain_loop, train
from torch import nn
from torch.distributed import pipelining

import fx_partition
from fx_partition.backends.training.tied_weights import TiedWeight, TiedWeights

Run = tuple[str, str, dict[str, Any]]

LOOP: dict[str, Any] = {"num_stages": 4}
SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("ScheduleGPipe", {}),
    ("Schedule1F1B", {}),
    ("ScheduleInterleaved1F1B", LOOP),
    ("ScheduleLoopedBFS", LOOP),
    ("ScheduleInterleavedZeroBubble", LOOP),
    ("ScheduleZBVZeroBubble", {**LOOP, "placement": "v"}),
]


def check_against_one_process(name: str, ranks: list[Trained], tolerance: float = 1e-5) -> None:
    """Losses of all steps, gradients of the last, and weights and buffers after it; copies of a weight are equal."""
    wanted = alone(name)
    losses = [trained.losses for trained in ranks if trained.losses]
    assert len(losses) == 1 and len(losses[0]) == len(wanted.losses)
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(wanted.losses), rtol=tolerance, atol=tolerance)
    for found, expected in (("gradients", wanted.gradients), ("state", wanted.state)):
        seen: dict[str, torch.Tensor] = {}
        for trained in ranks:
            for key, tensor in getattr(trained, found).items():
                assert key not in seen or torch.equal(seen[key], tensor), f"copies of {key} differ"
                seen[key] = tensor
        assert seen.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(seen[key], tensor, rtol=tolerance, atol=tolerance)


def run(runs: list[Run], timeout: float = 180) -> None:
    results = run_ranks("rank_processes.training_runs:train_each", 2, runs, timeout=timeout)
    for (name, _, options), ranks in zip(runs, zip(*results, strict=True), strict=True):
        check_against_one_process(name, list(ranks), 1e-4 if options.get("compile") else 1e-5)


def test_skips_tied_weights_and_batch_norms_train_as_in_one_process() -> None:
    zero_bubble = ("ScheduleZBVZeroBubble", {**LOOP, "placement": "v"})
    run([("skips", "Schedule1F1B", {}), ("masked", *zero_bubble), ("normed", "ScheduleGPipe", {})])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_schedule_trains_as_one_process(name: str) -> None:
    run([(name, schedule, options) for schedule, options in SCHEDULES], timeout=400)


@pytest.mark.slow
def test_compiled_stages_train_as_one_process() -> None:
    run(
        [
            ("skips", "Schedule1F1B", {"compile": True}),
            ("masked", "ScheduleInterleavedZeroBubble", {**LOOP, "compile": {"epilogue_fusion": False}}),
        ],
        timeout=400,
    )


def disagreeing(rank: int, world_size: int) -> list[str]:
    """Return the error of each rank where rank 1 is given something else, and where it fails alone."""
    x, deep = torch.randn(2, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
    cases: list[tuple[nn.Module, dict[str, Any]]] = [
        (nn.Sequential(nn.ReLU(), nn.Linear(8, 8 + 8 * rank)), {}),
        (nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.GELU() if rank else nn.Tanh()), {}),
        (deep, {"num_stages": 2 + 2 * rank}),
        (deep, {"num_stages": 2 - rank}),
        (deep, {"compile": {"no_such_option": 1} if rank else True}),
        (deep, {"compile": {"max_autotune": "three"} if rank else True}),
        (deep, {"device": "nowhere" if rank else None}),
        (deep, {"device": "cuda:99" if rank else None}),
    ]
    return [error_of(model, x, options) for model, options in cases]


def error_of(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> str:
    try:
        fx_partition.to_pipeline_stages(model, x, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_ranks_that_disagree_or_fail_alone_all_say_so() -> None:
    zero, one = run_ranks(disagreeing, 2, timeout=180)
    given = "PartitionError: the ranks were not given the same "
    assert zero[:3] == one[:3]
    assert zero[0].startswith(f"{given}weight 1.weight: rank 0: torch.float32 [8, 8] with a gradient; rank 1: ")
    assert zero[1].startswith(f"{given}graph: rank 0: ")
    assert zero[2] == f"{given}number of stages: rank 0: 2; rank 1: 4"
    for others, own in zip(zero[3:], one[3:], strict=True):
        assert others == f"PartitionError: rank 1 could not make stages; rank 1: {own}"
    words = ["1 stages for 2 ranks", "inductor has no option 'no_such_option'", "max_autotune", "'nowhere'"]
    words += ["CUDA|NVIDIA"]  # builds of torch with and without CUDA
    for word, own in zip(words, one[3:], strict=True):
        assert re.search(word, own)


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.b(F.dropout(self.a(x), 0.5, self.training)), 0.5, self.training)


def three_ranks(rank: int, world_size: int) -> tuple[Trained, Trained | str, torch.Tensor | None]:
    """One pipeline of all, then one of ranks 1 and 2, then what dropout of theirs gives."""
    everyone = train("skips", "Schedule1F1B", {})
    pair = dist.new_group([1, 2])
    if rank == 0:
        with pytest.raises(fx_partition.PartitionError) as caught:
            fx_partition.to_pipeline_stages(Skips(), torch.randn(2, 8), group=pair)
        return everyone, str(caught.value), None
    trained = train("masked", "Schedule1F1B", {"group": pair})
    torch.manual_seed(0)
    keep = [["linear", "dropout"], ["linear_1", "dropout_1"]]
    stages = fx_partition.to_pipeline_stages(Drops(), torch.randn(2, 8), group=pair, keep_together=keep)
    torch.manual_seed(rank)
    steps = pipelining.ScheduleGPipe(stages[0], 2, loss_fn=mean_square)
    if rank == 1:
        steps.step(torch.ones(4, 8))
        return everyone, trained, None
    return everyone, trained, steps.step(target=torch.ones(4, 4)).detach()


def test_three_ranks_a_group_of_two_and_dropout() -> None:
    results = run_ranks(three_ranks, 3, timeout=180)
    check_against_one_process("skips", [everyone for everyone, _, _ in results])
    (_, refused, _), (_, first, _), (_, second, output) = results
    assert "not in group=" in refused
    check_against_one_process("masked", [first, second])
    # Each rank draws from its own generator, microbatch by microbatch.
    torch.manual_seed(0)
    model = Drops()
    torch.manual_seed(1)
    hidden = [F.dropout(model.a(torch.ones(2, 8))) for _ in range(2)]
    torch.manual_seed(2)
    torch.testing.assert_close(output, torch.cat([F.dropout(model.b(part)) for part in hidden]).detach())


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("skips", "split"),
        pytest.param("skips", "backend", marks=pytest.mark.slow),
        pytest.param("gpt2", "split", marks=pytest.mark.slow),
        pytest.param("gpt2", "backend", marks=pytest.mark.slow),
    ],
)
def test_one_process_trains_the_parameters_that_the_optimizer_holds(name: str, way: str) -> None:
    """Cut modules in a plain loop: split bitwise, the compiling backend within float32's rounding."""
    case, wanted = CASES[name], alone(name)
    model = case.model()
    x, _ = next(case.batches())
    cut = (
        fx_partition.split(model, x[:ROWS], devices=3)
        if way == "split"
        else torch.compile(model, backend="l2partition", options={"devices": 3}, dynamic=False)
    )
    losses = plain_loop(case, cut, model.parameters())
    tolerance = 0.0 if way == "split" else 1e-4
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted.losses), rtol=tolerance, atol=tolerance)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted.state[key], rtol=tolerance, atol=tolerance)


class Two(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.full((2,), value)) for _ in range(2))


def overlapping_ties(rank: int, world_size: int) -> list[Any]:
    """What the weights of this rank's stage start with, and the gradients that it ends with."""
    stage = Two(rank + 1.0)
    ties = TiedWeights([TiedWeight("a", (0, 2), (0, 2)), TiedWeight("b", (1, 2), (1, 2))], {rank: stage}, None)
    start = [stage.a.tolist(), stage.b.tolist()]
    for parameter in stage.parameters():
        parameter.grad = torch.full((2,), 10.0**rank)
    ties.reduce()
    return [*start, *(p.grad.tolist() for p in stage.parameters() if p.grad is not None)]


def test_ties_of_a_rank_with_each_of_two_others() -> None:
    first, second, third = run_ranks(overlapping_ties, 3)
    assert first == [[1, 1], [1, 1], [101, 101], [1, 1]]
    assert second == [[2, 2], [2, 2], [10, 10], [110, 110]]
    assert third == [[1, 1], [2, 2], [101, 101], [110, 110]]
