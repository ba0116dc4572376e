"""A stage's weights: read where they are or copied straight from their source, and moved if that is asked."""

from __future__ import annotations

import pytest
import torch
from cuda_fakes import HOST, FakeDriver
from torch import Tensor, nn

from fx_partition.backends.cuda.stage_step import CudaStep
from fx_partition.backends.cuda.stream_pipeline import CudaPipeline
from fx_partition.backends.weights.lazy_weights import is_lazy, make_lazy
from fx_partition.backends.weights.moved_weights import Moves
from fx_partition.common.errors import PartitionError

HOME, OTHER = torch.device("cpu:0"), torch.device("cpu:1")


def scale(x: Tensor, weight: Tensor) -> list[Tensor]:
    return [x * weight]


def build(
    driver: FakeDriver, weights: list[Tensor], *, moves: Moves | None = None, persist: bool = False
) -> CudaPipeline:
    """A stage on each of two devices; the weights are those of stage 0 and stage 1."""
    steps = [
        CudaStep(device, driver.kernel("", scale), (i, weight), (i + 1,), (i,), static=False)
        for i, (device, weight) in enumerate(zip((HOME, OTHER), weights, strict=True))
    ]
    return CudaPipeline(steps, 3, (2,), 4, graphs=False, persist=persist, moves=moves, driver=driver)


def request(pipeline: CudaPipeline) -> float:
    return float(pipeline.submit([(0, torch.ones(2))]).take()[0][0])


def test_a_moved_weight_is_what_the_stage_reads() -> None:
    driver = FakeDriver()
    weights = [driver.put(nn.Parameter(torch.full((2,), value)), HOME) for value in (2.0, 3.0)]
    own = [weight.data_ptr() for weight in weights]
    pipeline = build(driver, weights, moves=Moves({"first": weights[0], "second": weights[1]}))
    assert weights[0].data_ptr() == own[0]  # it is where its stage is
    assert weights[1].data_ptr() != own[1] and weights[1].requires_grad
    assert request(pipeline) == 6
    with torch.no_grad():
        weights[1].fill_(5)  # no copy in between
        assert request(pipeline) == 10
    pipeline.close()
    assert driver.violations == []


def test_a_tied_weight_moves_to_the_first_stage_and_the_others_follow() -> None:
    driver = FakeDriver()
    tied = nn.Parameter(torch.full((2,), 3.0))  # on the host
    pipeline = build(driver, [tied, tied], moves=Moves({"tied": tied}))
    assert request(pipeline) == 9
    with torch.no_grad():
        tied.fill_(2)
    assert request(pipeline) == 4
    pipeline.close()


def test_the_former_memory_is_free() -> None:
    driver = FakeDriver()
    weight = nn.Parameter(torch.ones(2))
    former = weight.untyped_storage()._weak_ref()
    pipeline = build(driver, [weight, weight], moves=Moves({"weight": weight}))
    assert torch.UntypedStorage._expired(former)
    torch.UntypedStorage._free_weak_ref(former)
    pipeline.close()


def test_what_would_come_apart_is_refused_before_anything_moves() -> None:
    driver = FakeDriver()
    whole = torch.ones(4)
    halves = [whole[:2], whole[2:]]
    with pytest.raises(PartitionError, match=r"first \(to stage 0\), second \(to stage 1\)"):
        build(driver, halves, moves=Moves({"first": halves[0], "second": halves[1]}))
    assert halves[0].data_ptr() == whole.data_ptr()


@pytest.mark.parametrize("moves", [False, True])
def test_lazy_weights_go_straight_to_their_stages(moves: bool) -> None:
    driver = FakeDriver()
    sources = [torch.full((2,), 2.0), torch.full((2,), 3.0)]
    weights = [make_lazy(nn.Parameter(torch.empty(2)), source, HOST, ours=False) for source in sources]
    named = Moves({"first": weights[0], "second": weights[1]}) if moves else None
    pipeline = build(driver, weights, moves=named)
    assert [is_lazy(weight) for weight in weights] == [not moves] * 2
    assert request(pipeline) == 6
    pipeline.close()


def test_a_pipeline_keeps_its_weights_when_the_model_goes_elsewhere() -> None:
    driver = FakeDriver()
    weights = [driver.put(nn.Parameter(torch.full((2,), 2.0)), HOME) for _ in range(2)]
    pipeline = build(driver, weights)
    for weight in weights:
        weight.data = torch.zeros(2)  # as model.to(...) does
    assert request(pipeline) == 4
    pipeline.close()
