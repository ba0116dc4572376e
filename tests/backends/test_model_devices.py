"""Models and stages on devices of every kind return results on eager mode's devices.

On fake GPUs (`on_fake_gpus`): an operator whose inputs are on two devices raises, as on real ones.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from on_fake_gpus import FakeGpus, gpus, linear  # noqa: F401
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode

import fx_partition
from fx_partition.backends.dynamo import partition_compiler
from fx_partition.backends.options.backend_options import Options
from fx_partition.backends.ranks.compile import without_indices
from fx_partition.backends.ranks.message_codec import _WireLayout
from fx_partition.backends.training.prepare import prepare
from fx_partition.common.errors import PartitionError, PartitionWarning
from fx_partition.passes.plan.request import Request
from fx_partition.report.compiled_plans import compiled_graphs

WIDTH = 8

Form = Callable[[Tensor, Tensor], Tensor]

# What a model adds to its result; x is its input, y what its first layer makes.
FORMS: list[Form] = [
    lambda x, y: torch.ones(WIDTH, device=x.device),
    lambda x, y: torch.ones(WIDTH, device=y.device),
    lambda x, y: torch.ones(WIDTH, device="cuda:0"),
    lambda x, y: torch.arange(WIDTH, device="cuda"),
    lambda x, y: torch.ones(WIDTH, device=torch.device("cuda")),
    lambda x, y: torch.ones(WIDTH).to(x.device),
    lambda x, y: torch.ones(WIDTH).to("cuda:0"),
    lambda x, y: torch.ones(WIDTH).to(device="cuda:0", dtype=torch.float32),
    lambda x, y: torch.ones(WIDTH).to(y),
    lambda x, y: torch.ones(WIDTH).cuda(),
    lambda x, y: torch.ones(WIDTH).cuda(0, non_blocking=True),
    lambda x, y: torch.ones(WIDTH).cuda(device=torch.device("cuda:0")),
    lambda x, y: x.new_ones(WIDTH),
    lambda x, y: y.new_zeros(4, WIDTH, device="cuda"),
    lambda x, y: torch.tensor([1.0] * WIDTH, device=x.device),
    lambda x, y: torch.tensor([1.0] * WIDTH, device="cuda:0"),
    lambda x, y: torch.ones(WIDTH).type_as(x),
    lambda x, y: torch.ones_like(x),
    lambda x, y: torch.ones_like(x, device="cpu").cuda(),
    lambda x, y: torch.tensor(2.0),
    lambda x, y: y.cpu().cuda(),
]


class Layers(nn.Module):
    """Three layers on the devices given, with what is moved between them where they differ, and some sums."""

    def __init__(self, devices: Sequence[str], forms: Sequence[Form] = ()) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(WIDTH, device) for device in devices)
        self.moves = ["" if before == after else after for before, after in itertools.pairwise(devices)]
        self.forms = forms

    def forward(self, x: Tensor) -> Tensor:
        y = z = torch.relu(self.layers[0](x))
        for layer, move in zip(self.layers[1:], self.moves, strict=True):
            z = layer(z.to(move) if move else z)
        for form in self.forms:
            z = z + form(x, y)
        return z


def placed(model: nn.Module, devices: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """What the model returns, and what it returns compiled."""
    eager = model(*args)
    return eager, torch.compile(model, backend="l2partition", options={"devices": devices, **options})(*args)


def devices_of(results: Any) -> list[str]:
    return [str(r.device) for r in ((results,) if isinstance(results, Tensor) else results)]


def stages_of(model: nn.Module) -> list[str]:
    return [str(stage.device) for stage in compiled_graphs(model)[-1].stages]


@pytest.mark.parametrize(
    "devices", [["cuda:1"], ["cuda:0", "cuda:1"], ["cuda:1", "cuda:0"], ["cuda:1", "cpu"]], ids=str
)
def test_every_form_that_names_a_device(gpus: FakeGpus, devices: list[str]) -> None:  # noqa: F811
    model = Layers(["cuda:0"] * 3, FORMS)
    eager, found = placed(model, devices, torch.empty(4, WIDTH, device="cuda:0"))
    assert devices_of(found) == devices_of(eager) == ["cuda:0"]
    assert stages_of(model) == devices and found.shape == eager.shape


FORMS_ON_THE_CPU: list[Form] = [
    lambda x, y: torch.ones(WIDTH),
    lambda x, y: torch.arange(WIDTH),
    lambda x, y: torch.tensor([1.0] * WIDTH),
    lambda x, y: torch.full((WIDTH,), 3.0, dtype=torch.float32, device=None),
    lambda x, y: torch.ones(WIDTH, device="cpu"),
    lambda x, y: torch.ones(WIDTH, device=y.device),
    lambda x, y: y.cpu(),
    lambda x, y: y.to("cpu"),
    lambda x, y: torch.fft.fftfreq(WIDTH),
    lambda x, y: torch.tril_indices(4, 4).sum(),
    lambda x, y: y.type(torch.FloatTensor),
]


@pytest.mark.parametrize("devices", [["cuda:1"], ["cuda:0", "cuda:1"], ["cpu", "cuda:0"]], ids=str)
def test_a_model_on_the_cpu_makes_its_tensors_where_its_stages_are(gpus: FakeGpus, devices: list[str]) -> None:  # noqa: F811
    model = Layers(["cpu"] * 3, FORMS_ON_THE_CPU)
    eager, found = placed(model, devices, torch.empty(4, WIDTH))
    assert devices_of(found) == devices_of(eager) == ["cpu"] and stages_of(model) == devices


@pytest.mark.parametrize("stages", [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"], ["cuda:1"], ["cuda:0", "cpu"]], ids=str)
@pytest.mark.parametrize("home", [["cuda:0", "cuda:1", "cuda:1"], ["cuda:1", "cuda:1", "cuda:0"]], ids=str)
def test_a_model_placed_by_hand(gpus: FakeGpus, home: list[str], stages: list[str]) -> None:  # noqa: F811
    class Net(Layers):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y, x + 1, torch.ones(2, device="cuda:3")

    model = Net(home)
    eager, found = placed(model, stages, torch.empty(4, WIDTH, device=home[0]))
    assert devices_of(found) == devices_of(eager) == [home[-1], home[0], "cuda:3"]
    assert stages_of(model) == stages and gpus.compiled == [{stage} for stage in stages]


def test_a_layer_on_the_cpu_stays_there_and_a_warning_names_it(gpus: FakeGpus) -> None:  # noqa: F811
    model = Layers(["cuda:0", "cpu", "cuda:1"])
    with pytest.warns(PartitionWarning, match=r"layers\.1\.weight.* on the CPU.*the model is on cuda:0") as caught:
        eager, found = placed(model, ["cuda:0", "cuda:2"], torch.empty(4, WIDTH, device="cuda:0"))
    assert len(caught) == 1 and devices_of(found) == devices_of(eager) == ["cuda:1"]


def test_what_the_model_has_on_the_cpu_on_purpose_stays_there(gpus: FakeGpus) -> None:  # noqa: F811
    """A scalar, a table, an input: none of them is the first to say where the model is."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.tensor(3.0)
            self.register_buffer("table", torch.zeros(WIDTH, dtype=torch.long))
            self.layers = nn.ModuleList(linear(WIDTH, "cuda:0") for _ in range(2))

        def forward(self, bias: Tensor, x: Tensor) -> Any:
            y = self.layers[0](x * self.scale) + self.table.to(x.device)
            return self.layers[1](y) + bias.to(x.device), self.table + 1, bias * 2

    model = Net()
    args = torch.empty(4, WIDTH), torch.empty(4, WIDTH, device="cuda:0")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        eager, found = placed(model, ["cuda:1", "cuda:0"], *args)
    assert devices_of(found) == devices_of(eager) == ["cuda:0", "cpu", "cpu"]


def test_cuda_is_the_current_gpu(gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for current in (0, 2):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        assert Options.check({"devices": ["cuda", "cuda:1"]}).request.devices == (f"cuda:{current}", "cuda:1")
        assert Options.check({"devices": "cuda"}).request.devices == (f"cuda:{current}",)
    given: Any = [torch.device("cuda:3"), torch.device("cpu")]
    assert Options.check({"devices": given}).request.devices == ("cuda:3", "cpu")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    model = Layers(["cuda:0"] * 3)
    placed(model, ["cuda", "cuda"], torch.empty(4, WIDTH, device="cuda:0"))
    assert stages_of(model) == ["cuda:0", "cuda:0"] and gpus.moves == []


def test_training_where_the_weights_are(gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Refused where a stage would use a copy; stages may be where layers were placed by hand."""
    refuse = partition_compiler._refuse_training_elsewhere

    def refuse_under_grad(*args: Any) -> None:  # autograd itself ends a process without GPUs
        with torch.enable_grad():
            refuse(*args)

    monkeypatch.setattr(partition_compiler, "_refuse_training_elsewhere", refuse_under_grad)
    devices = ["cuda:0", "cuda:1"]
    x = torch.empty(4, WIDTH, device="cuda:0")
    model = Layers(["cuda:0", "cuda:1", "cuda:1"])
    placed(model, devices, x, keep_together=["layers.1"])
    assert stages_of(model) == ["cuda:0", "cuda:1"]
    with pytest.raises(BackendCompilerFailed, match="needs a gradient, and stage 1 on cuda:1 would use a copy"):
        placed(Layers(["cuda:0"] * 3), devices, x)


def test_microbatches_run_where_the_model_is(gpus: FakeGpus) -> None:  # noqa: F811
    for home, devices, why in (
        (["cuda:0"] * 3, ["cuda:1"], "where the model is, on cuda:0, and 'cuda:1' is among the devices"),
        (["cpu"] * 3, ["cuda:0", "cpu"], "where the model is, on cpu, and 'cuda:0' is among the devices"),
        (["cuda:0", "cuda:1", "cuda:1"], ["cuda:0"], r"layers\.0\.weight.* on cuda:0; layers\.1\.weight.* on cuda:1"),
    ):
        x = torch.empty(4, WIDTH, device=home[0])
        with pytest.raises(BackendCompilerFailed, match=why):
            placed(Layers(home), devices, x, microbatches=2)


def test_stages_for_training_are_on_one_device(gpus: FakeGpus) -> None:  # noqa: F811
    model, x = Layers(["cuda:0", "cuda:1", "cuda:1"]), torch.empty(4, WIDTH, device="cuda:0")
    with pytest.raises(PartitionError, match=r"layers\.0\.weight.* on cuda:0; .* on cuda:1.*name one with device="):
        prepare(model, x, Request.check(None, 2), 1, None)


def test_ranks_compare_graphs_whatever_gpu_each_traces_them_on() -> None:
    texts = []
    for index in range(2):
        graph = torch.fx.Graph()
        made = graph.call_function(torch.ones, (3,), {"device": torch.device("cuda", index)})
        graph.output(graph.call_method("to", (made, f"cuda:{index}")))
        texts.append(without_indices(graph))
    assert texts[0] == texts[1] and "cuda" in texts[0]


def test_what_is_on_the_cpu_on_purpose_crosses_ranks_there() -> None:
    with FakeTensorMode():
        there = torch.device("cuda:1")
        layouts = [_WireLayout.of(torch.empty(3, device=device), there) for device in ("cpu", "cuda:0")]
    assert [str(layout.device) for layout in layouts] == ["cpu", "cuda:1"]


def test_a_pipeline_on_cores_takes_no_model_on_a_gpu(gpus: FakeGpus) -> None:  # noqa: F811
    with pytest.raises(PartitionError, match=r"the model is on cuda:0.*model\.cpu\(\)"):
        fx_partition.pipeline(Layers(["cuda:0"] * 3), torch.empty(4, WIDTH, device="cuda:0"), devices="cpu:threads")
