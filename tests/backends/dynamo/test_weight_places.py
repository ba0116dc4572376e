"""A later graph of a model has its weights on the devices where earlier graphs have them."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from eager_stages import use_eager_stages
from on_fake_gpus import FakeGpus, gpus, linear  # noqa: F401
from torch import Tensor, nn

from fx_partition.backends.dynamo import partition_compiler
from fx_partition.backends.dynamo.weight_places import weight_places
from fx_partition.backends.weights.device_copies import STORE
from fx_partition.common.errors import PartitionWarning
from fx_partition.common.units import format_bytes
from fx_partition.report import render
from fx_partition.report.compiled_plans import compiled_graphs

WIDTH, LENGTH, PROMPT = 32, 64, 12
# What a device holds: one layer and the features of a prompt, or two layers and a half.
BUDGET = "120KiB"
PAIR = ["cuda:0", "cuda:1"]


class Layer(nn.Module):
    """Attention over a static cache, then an MLP."""

    def __init__(self, device: str) -> None:
        super().__init__()
        for name in ("query", "key", "value", "out", "up", "down"):
            setattr(self, name, linear(WIDTH, device))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, LENGTH, WIDTH, device=device))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.keys.index_copy_(1, position, self.key(x))
        self.values.index_copy_(1, position, self.value(x))
        later = torch.arange(LENGTH, device=x.device) > position.unsqueeze(1)
        scores = (self.query(x) @ self.keys.transpose(1, 2)).masked_fill(later, -1e9)
        x = x + self.out(torch.softmax(scores, -1) @ self.values)
        return x + self.down(torch.relu(self.up(x)))


class Decoder(nn.Module):
    """Makes wide features of its tokens first, so that a prompt needs more of the first device than a token."""

    def __init__(self, device: str, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(device) for _ in range(layers))
        self.first, self.head = linear(WIDTH, device), linear(WIDTH, device)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        phases = torch.arange(16, device=x.device)
        x = self.first((x.unsqueeze(-1) * phases).sin().mean(-1))
        for layer in self.layers:
            x = layer(x, position)
        return self.head(x)


def inputs(length: int, device: str) -> tuple[Tensor, Tensor]:
    start = 0 if length > 1 else PROMPT
    return torch.ones(1, length, WIDTH, device=device), torch.arange(start, start + length, device=device)


def compiled(model: nn.Module, devices: Any = PAIR, **options: Any) -> Any:
    options = {"devices": devices, "cache_bytes": BUDGET, **options}
    return torch.compile(model, backend="l2partition", dynamic=False, options=options)


def run(fast: Any, length: int) -> Any:
    """Call a compiled model, and return the graph that was compiled for it."""
    home = str(next(fast.parameters()).device)
    known = len(compiled_graphs(fast))
    fast(*inputs(length, home))
    found = compiled_graphs(fast)
    assert len(found) == known + 1
    return found[-1]


def readers(graph: Any) -> dict[str, set[str]]:
    """For each weight and buffer by its input's name, the devices of the stages that take it."""
    found: dict[str, set[str]] = {}
    for stage in graph.stages:
        for node in stage.partition.inputs:
            if "parameters" in node.name or "buffers" in node.name:
                found.setdefault(node.name, set()).add(str(stage.device))
    return found


def copies(model: nn.Module) -> dict[int, int]:
    """For each parameter how many copies the store holds; a buffer that is written has none."""
    mine = {id(parameter): 0 for parameter in model.parameters()}
    for (number, _), copy in list(STORE._copies.items()):
        if number in mine and copy.original() is not None:
            mine[number] += 1
    return mine


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        yield


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("home", ["cpu", pytest.param("cuda:0", marks=pytest.mark.slow)])
def test_a_token_has_the_weights_where_the_prompt_has_them(gpus: FakeGpus, home: str) -> None:  # noqa: F811
    own = readers(run(compiled(Decoder(home)), 1))
    torch._dynamo.reset()
    model = Decoder(home)
    fast = compiled(model)
    prompt = run(fast, PROMPT)
    held = copies(model)
    token = run(fast, 1)
    assert own != readers(prompt), "the test shows nothing: both are cut at the same layers anyway"
    assert readers(token) == readers(prompt)
    assert any("keys" in name for name in readers(token))  # the caches stay with their layers
    assert copies(model) == held and max(held.values()) == 1
    assert token.plan.follows_weights and not prompt.plan.follows_weights
    assert token.plan.spill_bytes == 0
    assert "stay on the devices on which earlier graphs" in render(token.plan, "text")


def test_a_prompt_that_does_not_fit_so_has_weights_on_two_devices_and_says_so(gpus: FakeGpus) -> None:  # noqa: F811
    model = Decoder("cpu")
    fast = compiled(model)
    token = run(fast, 1)
    before = copies(model)
    with pytest.warns(PartitionWarning, match="call the model with its largest sizes first") as caught:
        prompt = run(fast, PROMPT)
    (text,) = [str(w.message) for w in caught if issubclass(w.category, PartitionWarning)]
    assert readers(prompt) != readers(token) and not prompt.plan.follows_weights
    more = {p: copies(model)[id(p)] - before[id(p)] for p in model.parameters()}
    twice = sum(p.nbytes for p, count in more.items() if count)
    assert twice > 0 and set(more.values()) == {0, 1}
    assert f": {format_bytes(twice)} are held once more" in text
    assert text.partition(";")[0] in prompt.plan.note and prompt.plan.note in render(prompt.plan, "text")
    assert prompt.plan.spill_bytes == 0


@pytest.mark.usefixtures("silent")
def test_graphs_of_other_devices_do_not_count_nor_those_that_are_gone(gpus: FakeGpus) -> None:  # noqa: F811
    model = Decoder("cpu")
    run(compiled(model), PROMPT)
    assert not run(compiled(model, ["cuda:2", "cuda:1"]), 1).plan.follows_weights
    torch._dynamo.reset()
    gc.collect()
    assert compiled_graphs(model) == [] and set(copies(model).values()) == {0}
    assert not run(compiled(model), 1).plan.follows_weights


def test_nothing_keeps_a_model_alive(gpus: FakeGpus) -> None:  # noqa: F811
    model = Decoder("cpu", layers=1)
    fast = compiled(model, cache_bytes="30KiB")
    graph = run(fast, 1)
    assert graph.stages and graph.reads
    weights = [weakref.ref(p) for p in model.parameters()]
    torch._dynamo.reset()
    del model, fast
    gc.collect()
    assert [ref for ref in (*weights, *(ref for ref, _ in graph.reads)) if ref() is not None] == []


@pytest.mark.parametrize(
    "options",
    [{"devices": ["cpu", "cpu"]}, *(pytest.param(more, marks=pytest.mark.slow) for more in ({"devices": 2}, {}))],
    ids=str,
)
def test_on_the_models_own_device_nothing_is_copied(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of both graphs are called with the model's own tensors."""
    use_eager_stages(monkeypatch)
    called: list[int] = []
    assemble = partition_compiler.assemble

    def watched(captured: Any, stages: Any, install: Any, written: Any) -> Any:
        def watch(put: Any) -> None:
            install(lambda stage, function: put(stage, lambda *args: (note(args), function(*args))[1]))

        return assemble(captured, stages, watch, written)

    def note(args: Any) -> None:
        called.extend(arg.data_ptr() for arg in args if isinstance(arg, Tensor))

    monkeypatch.setattr(partition_compiler, "assemble", watched)
    torch.manual_seed(0)
    model, twin = Decoder("cpu").eval(), Decoder("cpu").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    twin.load_state_dict(model.state_dict())
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    fast = torch.compile(
        model, backend="l2partition", dynamic=False, options={"cache_bytes": BUDGET, **options}
    )
    with torch.no_grad():
        for length in (PROMPT, 1):
            called.clear()
            args = inputs(length, "cpu")
            assert torch.allclose(fast(*args), twin(*args), atol=1e-5)
            assert own <= set(called), "a weight or a cache was read from another memory than the model's"
    assert len(compiled_graphs(model)) == 2 and len(STORE._copies) == 0
    assert all(len(graph.stages) >= 2 for graph in compiled_graphs(model))


def test_one_device_has_no_places() -> None:
    captured: Any = None
    assert weight_places(captured, ["cuda:0", "cuda:0"]) is None and weight_places(captured, []) is None
