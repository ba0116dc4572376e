"""Models compiled by ``torch.compile(backend="l2partition")`` behave like eager ones, in stages as planned."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

import fx_partition
from fx_partition.backends import l2partition as backend_module
from fx_partition.backends.lowering import compile_stages
from fx_partition.backends.lowering.send_recv_ops import RECV, SEND
from fx_partition.backends.weights.device_copies import STORE
from fx_partition.common.errors import PartitionWarning
from fx_partition.report.compiled_plans import compiled_graphs

WIDTH = 64  # a linear layer is 16.25 KiB


class Net(nn.Module):
    """Six layers with a skip from the input to each, a counter and a batch norm: four partitions of 40 KiB."""

    def __init__(self, depth: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = dropout
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, cache: Tensor | None = None) -> dict[str, Any]:
        y = x
        self.calls.add_(1)
        for layer in self.layers:
            x = torch.nn.functional.dropout(torch.relu(layer(x)), self.dropout, self.training) + y
        x = self.norm(x)
        if cache is not None:
            cache[1:2] = x[:1]
        return {"x": x, "twice the batch": x.shape[0] * 2, "nothing": None}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def compiled(model: nn.Module | Callable[..., Any], **options: Any) -> Any:
    inductor = options.pop("mode", None)
    return torch.compile(model, backend="l2partition", mode=inductor, options={"cache_bytes": "40KiB", **options})


def compile_with_mode(model: nn.Module, mode: str) -> Any:
    """torch.compile takes a mode or options, so the mode goes to the backend as its own keyword."""

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        return backend_module.l2partition(gm, inputs, mode=mode, options={"cache_bytes": "40KiB"})

    return torch.compile(model, backend=backend)


def stages_of(model: nn.Module) -> tuple[Any, ...]:
    graph = compiled_graphs(model)[-1]
    assert len(graph.stages) == graph.plan.num_partitions or graph.plan.num_partitions == 1
    return graph.stages


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def test_is_found_by_name_without_an_import() -> None:
    script = """
import sys, torch
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
assert not any(name.startswith("fx_partition") for name in sys.modules)
assert "l2partition" in torch.compiler.list_backends()
x = torch.randn(2, 64)
with torch.no_grad():
    found = torch.compile(model, backend="l2partition", options={"cache_bytes": "40KiB"})(x)
    assert torch.allclose(found, model(x), atol=1e-5)
from fx_partition.report.compiled_plans import compiled_graphs
print("stages:", len(compiled_graphs(model)[0].stages))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    stages = int(done.stdout.split("stages:")[1])
    assert stages >= 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_second_shapes_buffers_and_cache_without_gradients(net: Net, mode: Callable[[], Any]) -> None:
    twin = copy.deepcopy(net)
    run = compiled(net)
    with mode():
        for batch in (4, 5, 6):
            x, cache = torch.randn(batch, WIDTH), torch.zeros(3, WIDTH)
            other = cache.clone()
            found, expected = run(x, cache), twin(x, other)
            assert close(found["x"], expected["x"])
            assert found["twice the batch"] == 2 * batch and found["nothing"] is None
            assert close(cache, other) and cache[1].any() and not cache[0].any()
            assert torch.equal(net.calls, twin.calls)
    assert net.calls.item() == 3
    assert len(stages_of(net)) >= 3
    assert len(compiled_graphs(net)) == 2  # one for the first batch, one for all others


def test_train_mode_updates_statistics_and_gradients_as_eager_does(net: Net) -> None:
    net.train()
    twin = copy.deepcopy(net)
    run = compiled(net)
    for batch in (4, 5):
        x = torch.randn(batch, WIDTH)
        for model, call in ((net, run), (twin, twin)):
            model.zero_grad()
            call(x)["x"].square().sum().backward()
        assert close(net.norm.running_mean, twin.norm.running_mean)
        assert not close(net.norm.running_mean, torch.zeros(WIDTH))
        for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-4, rtol=1e-4), name
    assert len(stages_of(net)) >= 3


def test_dropout_drops_the_share_it_should_and_draws_again_at_each_call() -> None:
    class Drop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.last(self.first(x))
            return nn.functional.dropout(torch.ones_like(x), 0.25, self.training) + 0 * x

    model = Drop().train()
    run = torch.compile(model, backend="l2partition", options={"cache_bytes": "150KiB"})
    x = torch.randn(256, WIDTH)
    with torch.no_grad():
        a, b = run(x), run(x)
        assert a.shape == (256, WIDTH)
        assert a.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
        assert (a == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert not torch.equal(a, b)
        assert torch.equal(model.eval() and run(x), torch.ones_like(a))
    assert len(stages_of(model)) >= 2


def test_training_without_dropout_equals_eager() -> None:
    torch.manual_seed(0)
    model = Net(dropout=0.0).train()
    twin = copy.deepcopy(model)
    x = torch.randn(8, WIDTH)
    assert close(compiled(model)(x)["x"], twin(x)["x"])


def test_graph_breaks_make_a_plan_each(net: Net) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
            self.b = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            torch._dynamo.graph_break()
            return self.b(x)

    model = Broken()
    x = torch.randn(2, WIDTH)
    with torch.no_grad():
        assert close(compiled(model)(x), model(x))
    assert [len(graph.stages) for graph in compiled_graphs(model)] == [2, 2]


def test_autocast_and_no_grad_inside_the_model() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                for layer in self.layers[:4]:
                    x = layer(x)
            with torch.no_grad():
                y = self.layers[4](x.float())
            return x, self.layers[5](y)

    torch.manual_seed(0)
    model = Regions()
    twin = copy.deepcopy(model)
    x = torch.randn(4, WIDTH)
    found, expected = compiled(model)(x), twin(x)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    assert torch.allclose(found[0], expected[0], atol=0.02)
    assert torch.allclose(found[1], expected[1], atol=0.02)
    for result in (found, expected):
        (result[0].float().sum() + result[1].sum()).backward()
    assert model.layers[4].weight.grad is None and twin.layers[4].weight.grad is None
    for name, p in model.named_parameters():
        q = twin.get_parameter(name)
        if q.grad is not None:
            assert p.grad is not None
            assert torch.allclose(p.grad, q.grad, atol=0.05, rtol=0.05), name
    assert len(stages_of(model)) >= 3


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_pass_through_to_inductor(net: Net, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    plain = compile_stages.compile_part

    def record(gm: Any, inputs: Any, patches: dict[str, Any]) -> Any:
        seen.append(dict(patches))
        return plain(gm, inputs, {})  # tuning itself is inductor's, and slow

    monkeypatch.setattr(compile_stages, "compile_part", record)
    x = torch.randn(4, WIDTH)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        assert close(compile_with_mode(net, mode)(x)["x"], twin(x)["x"])
    from torch._inductor import list_mode_options

    assert len(seen) >= 3 and all(patches == list_mode_options(mode) for patches in seen)


def test_mode_alone_is_accepted_by_torch_compile(net: Net) -> None:
    x = torch.randn(4, WIDTH)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        run = torch.compile(net, backend="l2partition", mode="reduce-overhead")
        assert close(run(x)["x"], twin(x)["x"])


def test_inductor_options_pass_through(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    seen = []
    plain = compile_stages.compile_part

    def record(gm: Any, inputs: Any, patches: dict[str, Any]) -> Any:
        seen.append(dict(patches))
        return plain(gm, inputs, patches)

    monkeypatch.setattr(compile_stages, "compile_part", record)
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        compiled(net, inductor={"epilogue-fusion": not config.epilogue_fusion})(x)
    assert seen and all(patches == {"epilogue_fusion": not config.epilogue_fusion} for patches in seen)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"inductor": {"no_such_thing": 1}}, ['options["inductor"]: ', "'no_such_thing'", "list_options()"]),
        ({"inductor": {"max_autotun": 1}}, ["'max_autotun'; did you mean 'max_autotune'"]),
        ({"cache_byte": 1}, ["cache_byte", "cache_bytes"]),
        ({"devices": ["gpu:0"]}, ["gpu:0", "cpu"]),
        ({"devices": []}, ["devices", "default"]),
        ({"devices": "cpu:threads"}, ["cpu:threads", "fx_partition.pipeline"]),
        ({"devices": "cores:0-3"}, ["cores:0-3", "fx_partition.pipeline"]),
        ({"devices": ["cores:0", "cores:1"]}, ["cores:0", "fx_partition.pipeline"]),
        ({"devices": ["cuda:7"]}, ["cuda:7", "this machine has"]),
        ({"devices": ["meta"]}, ["meta", "only cpu and cuda"]),
        ({"algorithm": "best"}, ["best", "dp", "greedy"]),
        ({"cache_bytes": "much"}, ["much", "6MiB"]),
        ({"report": "plan.docx"}, ["plan.docx", ".md"]),
    ],
)
def test_options_that_do_not_exist_are_refused(net: Net, options: dict[str, Any], named: list[str]) -> None:
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as caught:
        compiled(net, **options)(torch.randn(4, WIDTH))
    assert all(word in str(caught.value) for word in named), str(caught.value)
    assert isinstance(caught.value.inner_exception, ValueError)


def test_report_option_writes_the_plan(net: Net, tmp_path: Any) -> None:
    path = tmp_path / "plan.json"
    with torch.no_grad():
        compiled(net, report=str(path))(torch.randn(4, WIDTH))
    assert '"num_partitions"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "asked",
    [
        {"devices": 3},
        {"cache_bytes": ["30KiB", "60KiB", "90KiB", "90KiB"]},
        {"cache_bytes": "40KiB", "objective": "traffic"},
        {"cache_bytes": "40KiB", "devices": 6, "replicate": True},
    ],
)
def test_what_the_planner_is_asked_for_reaches_it(net: Net, asked: dict[str, Any]) -> None:
    x = torch.randn(3, WIDTH)
    with torch.no_grad():
        expected = copy.deepcopy(net)(x)["x"]
        torch._dynamo.reset()
        result = torch.compile(net, backend="l2partition", options=asked)(x)["x"]
    torch.testing.assert_close(result, expected)
    (graph,) = compiled_graphs(net)
    assert graph.plan.num_partitions > 1 and graph.plan.spill_bytes == 0
    assert len(graph.stages) == graph.plan.num_partitions  # type: ignore[attr-defined]
    assert graph.plan.budget_is_smallest == ("cache_bytes" not in asked)
    assert bool(graph.plan.device_budgets) == isinstance(asked.get("cache_bytes"), list)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, :32],
    "step": lambda x: x[:, ::2],
    "expand": lambda x: x[:, None].expand(-1, 3, WIDTH),
    "diagonal": lambda x: x.view(-1, 8, 8).diagonal(dim1=1, dim2=2),
    "unfold": lambda x: x.unfold(1, 32, 16),
    "transpose": lambda x: x.t(),
}


@pytest.mark.parametrize(("grad", "dynamic"), [(False, True), pytest.param(True, False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(VIEWS))
def test_views_with_gaps_cross_boundaries(name: str, grad: bool, dynamic: bool) -> None:
    view = VIEWS[name]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            made = view(torch.sigmoid(self.first(x)))
            part = y.unfold(1, 32, 16)
            return made, torch.tanh(self.second(y).mean(0) + made.mean() + part.mean())

    model = Model()
    inputs = [torch.randn(5, WIDTH), torch.randn(4, WIDTH)]
    if dynamic:
        torch._dynamo.mark_dynamic(inputs[0], 0)
    torch._dynamo.reset()
    fast = compiled(model, cache_bytes="24KiB", keep_together=[["linear", "made", "part"]], order="trace")
    with torch.set_grad_enabled(grad):
        for mine, expected in zip(fast(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(mine, expected)
        (graph,) = compiled_graphs(model)
        assert graph.plan.num_partitions > 1
        if grad:
            sum(t.mean() for t in fast(*inputs)).backward()
            found = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            sum(t.mean() for t in model(*inputs)).backward()
            for mine, p in zip(found, model.parameters(), strict=True):
                torch.testing.assert_close(mine, p.grad)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_stages_allocate_is_reported_with_the_plan(net: Net, dynamic: bool) -> None:
    x = torch.randn(48, WIDTH)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.reset()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        state = torch.get_rng_state()
        fast = compiled(net, cache_bytes="100KiB", footprint="fused")
        torch.testing.assert_close(fast(x)["x"], copy.deepcopy(net)(x)["x"])
        assert torch.equal(torch.get_rng_state(), state)
    assert net.calls.item() == 1 and before.keys() == net.state_dict().keys()  # the call, and nothing that measured
    (graph,) = compiled_graphs(net)
    assert graph.plan.footprint == "fused" and graph.plan.num_partitions > 1 and graph.plan.spill_bytes == 0
    for partition in graph.plan.partitions:
        assert partition.allocated_bytes is not None and partition.own_bytes > 0
        assert abs(partition.own_bytes / partition.allocated_bytes - 1) <= 0.1, partition
    text = fx_partition.report(net)
    assert "allocates (planned)" in text and "allocates (compiled)" in text and "no plan is ruled out" in text
    with torch.no_grad():
        torch._dynamo.reset()
        whole = copy.deepcopy(net)
        compiled(whole, cache_bytes="1GiB", footprint="fused")(x)
    ((alone,),) = [graph.plan.partitions for graph in compiled_graphs(whole)]
    assert alone.allocated_bytes is not None and abs(alone.own_bytes / alone.allocated_bytes - 1) <= 0.1


@pytest.mark.slow
def test_slices_compile_run_and_train() -> None:
    wide = 8 * WIDTH
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, wide), nn.Tanh(), nn.Linear(wide, 4))
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    fast = compiled(model, oversize="slice")
    for rows in (3, 5):
        x = torch.randn(rows, WIDTH)
        torch.testing.assert_close(fast(x), twin(x))
    fast(x).square().sum().backward()
    twin(x).square().sum().backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    plans = [graph.plan for graph in compiled_graphs(model)]
    assert plans and all(plan.spill_bytes == 0 and plan.slicings and plan.num_partitions > 2 for plan in plans)
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_a_failed_compile_runs_as_one_partition(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(compile_stages, "compile_part", fail)
    twin = copy.deepcopy(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, cache = torch.randn(4, WIDTH), torch.zeros(3, WIDTH)
    other = cache.clone()
    run = compiled(net)
    with torch.no_grad():
        with pytest.warns(PartitionWarning, match=r"one partition, as its \d partitions could not.*: no such luck"):
            found = run(x, cache)
        assert close(found["x"], twin(x, other)["x"]) and close(cache, other)
    graph = compiled_graphs(net)[-1]
    assert graph.stages == () and graph.plan.num_partitions == 1 and graph.plan.spill_bytes > 0
    assert "The graph runs as one partition, as its" in fx_partition.report(net)
    assert net.state_dict().keys() == state.keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name] + 1 if name == "calls" else state[name]), name


# ---- devices


@pytest.mark.parametrize("devices", ["cpu", ["cpu", "cpu"], ["cpu"], ["cpu:1"], ["cpu", "cpu:1"]])
def test_devices_and_weights_that_change(net: Net, devices: Any) -> None:
    twin = copy.deepcopy(net)
    run = compiled(net, devices=devices)
    x, cache = torch.randn(4, WIDTH), torch.zeros(3, WIDTH)
    other = cache.clone()

    def agree() -> bool:
        same = close(run(x, cache)["x"], twin(x, other)["x"]) and close(cache, other)
        return same and torch.equal(net.calls, twin.calls)

    with torch.no_grad():
        assert agree()
        before = twin(x)["x"]
        twin.calls.sub_(1)
        for model in (net, twin):
            for layer in model.layers:
                layer.weight.mul_(1.5)
        assert agree() and not close(twin(x)["x"], before)
        twin.calls.sub_(1)
        torch.manual_seed(7)
        state = Net().state_dict()
        net.load_state_dict(state)
        twin.load_state_dict(state)
        assert agree()
    stages = stages_of(net)
    if isinstance(devices, str):
        assert len(stages) >= 3 and {str(stage.device) for stage in stages} == {devices}
    elif devices != ["cpu"]:
        assert [str(stage.device) for stage in stages] == devices
    else:  # one device, and the model is on it: nothing to cut
        assert stages == ()


def test_training_on_a_second_device_is_refused(net: Net) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(net.train(), devices=["cpu", "cpu:1"])(torch.randn(4, WIDTH))
    message = str(caught.value)
    assert "gradient" in message and "cpu:1" in message and "torch.no_grad()" in message


def test_a_shared_weight_is_copied_once_and_copies_die_with_the_graph() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(WIDTH, WIDTH)
            self.middle = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.middle(self.shared(x)))

    model = Tied()
    gc.collect()
    copies = STORE._copies
    before = len(copies)
    x = torch.randn(2, WIDTH)
    options = {"cache_bytes": "20KiB", "devices": ["cpu:1"], "on_shortage": "wrap"}
    with torch.no_grad():
        run = torch.compile(model, backend="l2partition", options=options)
        assert close(run(x), model(x))
    stages = stages_of(model)
    reading = [s for s in stages if any("shared" in n.name and "weight" in n.name for n in s.partition.inputs)]
    assert len(reading) == 2, "the weight must be needed by two stages"
    assert len(copies) - before == 4  # two weights and two biases
    del run, stages, reading
    torch._dynamo.reset()
    gc.collect()
    assert len(copies) == before
    assert compiled_graphs(model) == []


# ---- the stages as graphs


def run_stages(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run the stage graphs in order through the mailbox; placeholders are fed by name, results go by node name."""
    results = dict(inputs)
    for stage in stages_of(model):
        graph = stage.graph()
        arguments = [results[node.name] for node in graph.graph.find_nodes(op="placeholder")]
        given = graph(*arguments)
        output = next(iter(reversed(graph.graph.nodes)))
        kept = [n for n in stage.partition.outputs if n in stage.boundaries.returned or not _tensor(n)]
        assert len(kept) == len(given) == len(output.args[0])
        results |= {node.name: value for node, value in zip(kept, given, strict=True)}
    return results


def _tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), Tensor)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            x = torch.relu(layer(x)) + y
        return x


def test_stage_graphs_say_what_crosses_and_run_as_they_are() -> None:
    torch.manual_seed(0)
    model = Plain()
    seen: list[tuple[torch.fx.GraphModule, list[Any]]] = []
    x = torch.randn(4, WIDTH)

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append((copy.deepcopy(gm), list(inputs)))
        return backend_module.l2partition(gm, inputs, options={"cache_bytes": "40KiB"})

    with torch.no_grad():
        expected = torch.compile(model, backend=backend)(x)
        gm, inputs = seen[0]
        names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
        results = run_stages(model, dict(zip(names, inputs, strict=True)))
        whole = gm(*inputs)[0]
    stages = stages_of(model)
    last = stages[-1].partition.outputs[-1].name
    assert torch.equal(results[last], whole) and close(whole, expected)

    sent, received = {}, {}
    for stage in stages:
        for node in stage.graph().graph.nodes:
            if node.target is SEND:
                _, peer, tag = node.args
                sent[(stage.index, peer, tag)] = node
            elif node.target is RECV:
                shape, dtype, device, peer, tag = node.args
                received[(peer, stage.index, tag)] = node
                assert shape == [4, WIDTH] and dtype == torch.float32 and device == torch.device("cpu")
        code = stage.graph().code
        assert ("fx_partition.recv" in code) == (stage.index > 0)
        assert ("fx_partition.send" in code) == (stage.index < len(stages) - 1)
    assert sent.keys() == received.keys() and len(sent) >= len(stages) - 1


def test_a_stage_that_runs_before_its_sender_raises_an_error() -> None:
    model = Plain()
    with torch.no_grad():
        compiled(model)(torch.randn(4, WIDTH))
        stage = stages_of(model)[1]
        graph = stage.graph()
        arguments = [
            torch.zeros(tuple(map(int, node.meta["example_value"].shape)))
            for node in graph.graph.find_nodes(op="placeholder")
        ]
        with pytest.raises(RuntimeError, match=r"stage 0 has sent nothing under .*in order"):
            graph(*arguments)


def test_symbolic_shapes_are_received_symbolically() -> None:
    model = Plain()
    with torch.no_grad():
        run = compiled(model)
        x = torch.randn(4, WIDTH)
        torch._dynamo.mark_dynamic(x, 0)
        run(x)
        for batch in (3, 7):
            x = torch.randn(batch, WIDTH)
            assert close(run(x), model(x))
    assert len(compiled_graphs(model)) == 1
    for stage in stages_of(model)[1:]:
        graph = stage.graph().graph
        shapes = [node.args[0] for node in graph.nodes if node.target is RECV]
        assert shapes
        for rows, columns in shapes:
            assert isinstance(rows, torch.fx.Node) and rows.op == "placeholder"
            assert columns == WIDTH


def test_sizes_made_in_a_stage_cross_and_results_keep_their_kind() -> None:
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, int, None, list[Tensor]]:
            n = x.shape[0] * 2 + 1
            for layer in self.layers:
                x = layer(x)
            return x.sum() * n, n, None, [x, x + n]

    model = Sizes()
    with torch.no_grad():
        run = compiled(model)
        for batch in (2, 3, 4):
            x = torch.randn(batch, WIDTH)
            found, expected = run(x), model(x)
            assert torch.allclose(found[0], expected[0], atol=1e-3)
            assert found[1:3] == expected[1:3] and isinstance(found[1], int)
            assert isinstance(found[3], list)
            assert all(close(a, b) for a, b in zip(found[3], expected[3], strict=True))
    assert len(stages_of(model)) >= 2


def test_no_guard_is_added_while_planning() -> None:
    model = Plain()
    counters.clear()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        warnings.filterwarnings("ignore", "a call is beyond the sizes", PartitionWarning)  # 33 rows are
        run = compiled(model)
        for batch in (4, 2, 9, 33):
            x = torch.randn(batch, WIDTH)
            torch._dynamo.mark_dynamic(x, 0)
            assert close(run(x), model(x))
    assert counters["stats"]["unique_graphs"] == 1
