"""The CUDA runtime on real GPUs, against eager; skipped where there is none."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.cuda.l2_persistence import bindings
from fx_partition.backends.cuda.stage_step import CudaStep
from fx_partition.backends.cuda.stream_pipeline import CudaPipeline
from fx_partition.backends.lowering import torch_internals
from fx_partition.common.errors import PartitionWarning

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
    examples = [[(0, torch.zeros(64, WIDTH))]] if options["graphs"] else []
    return CudaPipeline(steps, last + 1, (last,), 4, examples=examples, **options)


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
        pending = [pipeline.submit([(0, request)]) for request in requests]
        results = [started.take()[0] for started in pending]
        pipeline.close()
    for request, result in zip(requests, results, strict=True):
        assert result.device == request.device
        torch.testing.assert_close(result.cpu(), reference(request, weights).cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graphs", [False, True])
def test_code_compiled_by_inductor(graphs: bool) -> None:
    weights = weights_of(2, "cuda:0")
    pipeline = build(("cuda:0", "cuda:0"), weights, torch.compile(layer, fullgraph=True), graphs=graphs, persist=False)
    requests = [torch.randn(64, WIDTH) for _ in range(20)]
    pending = [pipeline.submit([(0, request)]) for request in requests]
    for request, started in zip(requests, pending, strict=True):
        right = reference(request.to("cuda:0"), weights).cpu()
        torch.testing.assert_close(started.take()[0], right, rtol=1e-3, atol=1e-3)
    pipeline.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_an_exception_comes_with_its_request_and_the_rest_goes_on(graphs: bool) -> None:
    weights = weights_of(2)
    pipeline = build(("cuda:0", "cuda:0"), weights, graphs=graphs, persist=False)
    good, bad = torch.randn(64, WIDTH), torch.randn(64, 3)
    pending = [pipeline.submit([(0, bad if i == 5 else good)]) for i in range(10)]
    for i, started in enumerate(pending):
        if i == 5:
            with pytest.raises(RuntimeError):
                started.take()
        else:
            torch.testing.assert_close(started.take()[0], reference(good, weights), rtol=1e-3, atol=1e-3)
    pipeline.close()


def test_a_capture_that_fails_leaves_the_stage_working() -> None:
    def reads_back(y: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
        return [layer(y, x, weight)[0] * float(x.sum().isfinite())]  # a synchronisation, which no graph can hold

    weights = weights_of(2)
    with pytest.warns(PartitionWarning, match="runs without a CUDA graph"):
        pipeline = build(("cuda:0", "cuda:0"), weights, reads_back, graphs=True, persist=False)
    request = torch.randn(64, WIDTH)
    results = [pipeline.submit([(0, request)]).take()[0] for _ in range(5)]
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


# ---- models and stages on devices of several kinds


class Layers(nn.Module):
    """Layers on given devices, and what the last one adds to its result."""

    def __init__(self, homes: Sequence[str], form: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.weights = nn.ParameterList(map(Tensor.to, weights_of(len(homes)), homes))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for weight in self.weights:
            y = torch.relu(y.to(weight.device) @ weight)
        return y if self.form is None else y + self.form(x, y)


@pytest.fixture
def eager_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run as they are written: what is tested is where, and in which order."""
    monkeypatch.setattr(torch_internals, "compile_fx", lambda gm, inputs, config_patches=None: lambda *args: gm(*args))


def skip_without(*devices: str) -> None:
    if any((torch.device(device).index or 0) >= torch.cuda.device_count() for device in devices):
        pytest.skip(f"needs {', '.join(devices)}")


@pytest.mark.parametrize("devices", [["cuda:0"], ["cuda:0", "cpu", "cuda:0"], ["cuda:0", "cuda:1", "cpu"]], ids=str)
@pytest.mark.parametrize("pinned", [False, True])
def test_what_the_host_reads_and_writes_is_complete(eager_stages: None, devices: list[str], pinned: bool) -> None:
    skip_without(*devices)
    model = Layers(["cpu"] * 3)
    run = torch.compile(model, backend="l2partition", options={"devices": devices})
    with torch.no_grad():
        for _ in range(12):
            x = torch.randn(64, WIDTH)
            x = x.pin_memory() if pinned else x
            right = model(x)
            result = run(x)
            x.zero_()
            assert result.device.type == "cpu"
            torch.testing.assert_close(result, right, rtol=1e-3, atol=1e-3)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "text": lambda x, y: torch.ones(64, WIDTH, device="cuda:0"),
    "text without an index": lambda x, y: torch.ones(64, WIDTH, device="cuda"),
    "number": lambda x, y: torch.ones(64, WIDTH, device=0),
    "to text": lambda x, y: torch.ones(64, WIDTH).to("cuda:0"),
    "to number": lambda x, y: torch.ones(64, WIDTH).to(0),
    "cuda": lambda x, y: torch.ones(64, WIDTH).cuda(),
    "cuda of a number": lambda x, y: torch.ones(64, WIDTH).cuda(0),
    "new_ones": lambda x, y: x.new_ones(64, WIDTH),
    "round trip": lambda x, y: y.cpu().cuda(),
    "value on the CPU": lambda x, y: torch.tensor(2.0).expand(64, WIDTH).to(y.device),
}


@pytest.mark.parametrize("runs", ["at once", "pipeline"])
@pytest.mark.parametrize("devices", [["cuda", "cuda:0"], ["cuda:0", "cuda:1"], ["cuda:1", "cuda:0"]], ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_that_names_a_device(
    eager_stages: None, form: Callable[[Tensor, Tensor], Tensor], devices: list[str], runs: str
) -> None:
    skip_without(*devices)
    model, x = Layers(["cuda:0"] * 2, form), torch.randn(64, WIDTH, device="cuda:0")
    with torch.no_grad(), contextlib.ExitStack() as stack:
        if runs == "pipeline":
            run = stack.enter_context(fx_partition.pipeline(model, (x,), devices=devices, l2_persistence=False))
        else:
            run = torch.compile(model, backend="l2partition", options={"devices": devices})
        right = model(x)
        for _ in range(4):
            result = run(x)
            assert result.device == right.device
            torch.testing.assert_close(result.cpu(), right.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("devices", [["cuda:0", "cuda:1"], ["cuda:0", "cuda:2"], ["cuda:1"]], ids=str)
@pytest.mark.parametrize("homes", [["cuda:0", "cuda:1"], ["cuda:1", "cuda:0"], ["cuda:0", "cpu"]], ids=str)
def test_a_model_placed_by_hand(eager_stages: None, homes: list[str], devices: list[str]) -> None:
    skip_without(*devices, *homes)
    model, x = Layers(homes), torch.randn(64, WIDTH, device=homes[0])
    run = torch.compile(model, backend="l2partition", options={"devices": devices})
    with torch.no_grad(), warnings.catch_warnings():
        if "cpu" in homes:
            warnings.filterwarnings("ignore", "weights.1 is on the CPU", PartitionWarning)
        result, right = run(x), model(x)
    assert result.device == right.device
    torch.testing.assert_close(result.cpu(), right.cpu(), rtol=1e-3, atol=1e-3)


def test_weights_that_change_on_another_stream_reach_the_stages(eager_stages: None) -> None:
    """A stage elsewhere copies them on the stream of one call, and the next call reads the copy on another."""
    skip_without("cuda:1")
    model, x = Layers(["cuda:0"] * 2), torch.randn(64, WIDTH, device="cuda:0")
    run = torch.compile(model, backend="l2partition", options={"devices": ["cuda:0", "cuda:1"]})
    with torch.no_grad():
        run(x)
        for _ in range(5):
            model.weights[1].mul_(2.0)
            right = model(x).cpu()
            run(x)
            with torch.cuda.stream(torch.cuda.Stream(0)), torch.cuda.stream(torch.cuda.Stream(1)):
                result = run(x).cpu()
            torch.testing.assert_close(result, right, rtol=1e-3, atol=1e-2)
            model.weights[1].mul_(0.5)
