"""The CUDA runtime on real GPUs, against eager; skipped where there is none."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fx_partition.backends.cuda_pipeline import CudaPipeline, CudaStep
from fx_partition.backends.l2_persistence import bindings
from fx_partition.passes.errors import PartitionWarning

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PLACES = [("cuda:0",), ("cuda:0", "cuda:0"), ("cuda:0", "cuda:0", "cuda:0"), ("cuda:0", "cuda:1")]
WIDTH = 512


def layer(y: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
    return [torch.relu(y @ weight) + x]


def weights_of(count: int, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(WIDTH, WIDTH, device=device) / WIDTH**0.5 for _ in range(count)]


def build(places: Sequence[str], weights: Sequence[Tensor], function: Any = layer, **options: Any) -> CudaPipeline:
    """One layer a stage; each also takes the request's input."""
    if any(torch.device(place).index >= torch.cuda.device_count() for place in places):
        pytest.skip(f"needs {', '.join(places)}")
    last = len(places)
    steps = [
        CudaStep(torch.device(place), function, (i, 0, weights[i]), (i + 1,), (i,) if i else (), True)
        for i, place in enumerate(places)
    ]
    return CudaPipeline(steps, last + 1, (last,), 4, **options)


def reference(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    y = x
    for weight in weights:
        (y,) = layer(y, x.to(weight.device), weight)
    return y


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("home", ["cpu", "cuda:0"])
@pytest.mark.parametrize("places", PLACES, ids=["one", "two on one", "three on one", "two"])
def test_a_hundred_requests_in_flight(places: Sequence[str], home: str, graphs: bool, persist: bool) -> None:
    weights = weights_of(len(places), home)
    requests = [torch.randn(64, WIDTH, device=home) for _ in range(100)]
    with warnings.catch_warnings():
        if importlib.util.find_spec("cuda") is None:
            warnings.simplefilter("ignore", PartitionWarning)
        pipeline = build(places, weights, graphs=graphs, persist=persist)
        tickets = [pipeline.submit([(0, request)]) for request in requests]
        results = [ticket.wait()[0] for ticket in tickets]
        pipeline.close()
    for request, result in zip(requests, results, strict=True):
        assert result.device == request.device
        torch.testing.assert_close(result.cpu(), reference(request, weights).cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graphs", [False, True])
def test_code_compiled_by_inductor(graphs: bool) -> None:
    weights = weights_of(2, "cuda:0")
    pipeline = build(("cuda:0", "cuda:0"), weights, torch.compile(layer, fullgraph=True), graphs=graphs, persist=False)
    requests = [torch.randn(64, WIDTH) for _ in range(20)]
    tickets = [pipeline.submit([(0, request)]) for request in requests]
    for request, ticket in zip(requests, tickets, strict=True):
        right = reference(request.to("cuda:0"), weights).cpu()
        torch.testing.assert_close(ticket.wait()[0], right, rtol=1e-3, atol=1e-3)
    pipeline.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_an_exception_comes_with_its_ticket_and_the_rest_goes_on(graphs: bool) -> None:
    weights = weights_of(2)
    pipeline = build(("cuda:0", "cuda:0"), weights, graphs=graphs, persist=False)
    good, bad = torch.randn(64, WIDTH), torch.randn(64, 3)
    tickets = [pipeline.submit([(0, bad if i == 5 else good)]) for i in range(10)]
    for i, ticket in enumerate(tickets):
        if i == 5:
            with pytest.raises(RuntimeError):
                ticket.wait()
        else:
            torch.testing.assert_close(ticket.wait()[0], reference(good, weights), rtol=1e-3, atol=1e-3)
    pipeline.close()


def test_a_capture_that_fails_leaves_the_stage_working() -> None:
    def reads_back(y: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
        return [layer(y, x, weight)[0] * float(x.sum().isfinite())]  # a synchronisation, which no graph can hold

    weights = weights_of(2)
    pipeline = build(("cuda:0", "cuda:0"), weights, reads_back, graphs=True, persist=False)
    request = torch.randn(64, WIDTH)
    with pytest.warns(PartitionWarning, match="runs without a CUDA graph"):
        results = [pipeline.submit([(0, request)]).wait()[0] for _ in range(5)]
    for result in results:
        torch.testing.assert_close(result, reference(request, weights), rtol=1e-3, atol=1e-3)
    pipeline.close()


def test_the_set_aside_is_as_before_after_close() -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("needs cuda.bindings")
    calls = bindings(torch.device("cuda:0"))
    assert calls is not None
    before = calls.set_aside()
    pipeline = build(("cuda:0",), weights_of(1), graphs=False, persist=True)
    assert calls.most_set_aside() == 0 or calls.set_aside() > 0
    pipeline.close()
    assert calls.set_aside() == before
