"""Whole requests as one CUDA graph over several devices: right under delays, and without a call for each stage."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fx_partition.backends.cuda.stage_step import CudaStep
from fx_partition.backends.cuda.stream_pipeline import CudaPipeline
from fx_partition.common.errors import PartitionWarning

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices, as the software GPU has")

ROWS, WIDTH = 8, 96


def layer(y: Tensor, weight: Tensor) -> list[Tensor]:
    return [torch.relu(y @ weight)]


def weights_of(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(count)]


def reference(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for weight in weights:
        (x,) = layer(x.cpu(), weight)
    return x


def build(places: Sequence[int], home: str, weights: Sequence[Tensor], rows: Sequence[int] = (ROWS,)) -> CudaPipeline:
    steps = [
        CudaStep(torch.device("cuda", place), layer, (i, weight), (i + 1,), (i,), True)
        for i, (place, weight) in enumerate(zip(places, weights, strict=True))
    ]
    examples = [[(0, torch.randn(count, WIDTH).to(home))] for count in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)  # a capture that fails
        return CudaPipeline(
            steps, len(places) + 1, (len(places),), 8, graphs=True, persist=False, examples=examples
        )


@pytest.mark.parametrize("home", ["cpu", "cuda:0", "cuda:1"])
@pytest.mark.parametrize("places", [(0,), (0, 0), (0, 1), (1, 0, 1)], ids=str)
def test_many_requests_in_flight(places: Sequence[int], home: str) -> None:
    weights = weights_of(len(places))
    pipeline = build(places, home, weights)
    requests = [torch.randn(ROWS, WIDTH).to(home) for _ in range(24)]
    pending = [pipeline.submit([(0, request)]) for request in requests]
    results = [started.take()[0] for started in pending]
    pipeline.close()
    for request, result in zip(requests, results, strict=True):
        assert result.device == request.device
        torch.testing.assert_close(result.cpu(), reference(request, weights), rtol=1e-4, atol=1e-4)


def test_inputs_that_are_still_being_written_and_are_dropped_at_once() -> None:
    """Memory that the caller frees while a request uses it must not be given away."""
    weights = weights_of(2)
    pipeline = build((0, 1), "cuda:0", weights)
    results = []
    for i in range(24):
        x = torch.full((ROWS, WIDTH), float(i + 1), device="cuda:0")
        request = pipeline.submit([(0, x)])
        del x
        scratch = torch.full((ROWS, WIDTH), -1e6, device="cuda:0")  # takes the memory of x, if it is free
        del scratch
        if i % 3 == 0:
            results.append((i, request.take()[0].cpu()))
    pipeline.close()
    for i, result in results:
        right = reference(torch.full((ROWS, WIDTH), float(i + 1)), weights)
        torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-3)


def test_listed_sizes_have_graphs_and_others_run_without() -> None:
    weights = weights_of(2)
    pipeline = build((0, 1), "cuda:0", weights, rows=(2, ROWS))
    for rows in (2, ROWS, 5, 2, 5, ROWS):
        x = torch.randn(rows, WIDTH)
        (result,) = pipeline.submit([(0, x.to("cuda:0"))]).take()
        torch.testing.assert_close(result.cpu(), reference(x, weights), rtol=1e-4, atol=1e-4)
    pipeline.close()


def test_weights_that_are_written_between_requests() -> None:
    weights = weights_of(2)
    placed = [weight.to("cuda:0") for weight in weights]
    pipeline = build((0, 1), "cuda:0", placed)
    for factor in (1.0, 0.5, 2.0):
        for weight, own in zip(placed, weights, strict=True):
            own.mul_(factor)
            weight.copy_(own)
        x = torch.randn(ROWS, WIDTH)
        started = [pipeline.submit([(0, x.to("cuda:0"))]) for _ in range(4)]
        for request in started:
            torch.testing.assert_close(request.take()[0].cpu(), reference(x, weights), rtol=1e-4, atol=1e-4)
    pipeline.close()


def test_the_memory_of_graphs_is_free_after_close() -> None:
    def used() -> list[int]:
        torch.cuda.empty_cache()
        return [torch.cuda.memory_allocated(device) for device in (0, 1)]

    seen = []
    for _ in range(3):
        pipeline = build((0, 1), "cuda:0", weights_of(2))
        pipeline.submit([(0, torch.randn(ROWS, WIDTH).to("cuda:0"))]).take()
        pipeline.close()
        del pipeline
        seen.append(used())
    assert seen[0] == seen[1] == seen[2], seen
