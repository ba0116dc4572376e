"""Stages that are alike are compiled once; those that only look alike are not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.lowering import compile_stages
from fx_partition.backends.lowering.stage_key import stage_key
from fx_partition.passes.capture.captured_graph import value_of
from fx_partition.passes.capture.fake_tensors import new_fake_mode
from fx_partition.report.compiled_plans import compiled_graphs

WIDTH = 64
FUNCTIONAL = nn.functional


class Blocks(nn.Module):
    """Layers of one shape, of which two (32.5 KiB of weights) fit 40 KiB. The first of the six stages begins with a
    sin, the last ends with a tanh, and the others are alike."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return torch.tanh(x)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The stages that are compiled, in order."""
    seen: list[torch.fx.GraphModule] = []
    plain = compile_stages.compile_part

    def record(gm: torch.fx.GraphModule, inputs: Any, patches: Any) -> Any:
        seen.append(gm)
        return plain(gm, inputs, patches)

    monkeypatch.setattr(compile_stages, "compile_part", record)
    return seen


def compiled(model: nn.Module) -> Callable[..., Any]:
    return torch.compile(model, backend="l2partition", options={"cache_bytes": "40KiB"})


def test_equal_layers_are_compiled_once_and_equal_eager(compiles: list[torch.fx.GraphModule]) -> None:
    torch.manual_seed(0)
    model = Blocks()
    run = compiled(model)
    with torch.no_grad():
        for batch in (4, 6):
            x = torch.randn(batch, WIDTH)
            torch.testing.assert_close(run(x), model(x))
    static, dynamic = compiled_graphs(model)  # the second batch makes the size a symbol
    for graph in (static, dynamic):
        assert graph.plan.num_partitions == 6 and graph.plan.num_distinct == 3
        assert [p.code for p in graph.plan.partitions] == [0, 1, 1, 1, 1, 5]
    assert len(compiles) == 6
    assert "partitions: 6, 3 distinct" in fx_partition.report(static.plan)
    assert type(static.plan).from_json(static.plan.to_json()) == static.plan


def test_boundaries_are_where_stages_are_alike(compiles: list[torch.fx.GraphModule]) -> None:
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))
    (graph,) = compiled_graphs(model)  # leftmost boundaries would be before each ReLU, and make three kinds of stages
    assert graph.plan.num_partitions == 6 and graph.plan.num_distinct == 1 == len(compiles)


@pytest.mark.slow
def test_gradients_of_shared_code_equal_eager_over_steps(compiles: list[torch.fx.GraphModule]) -> None:
    torch.manual_seed(0)
    model = Blocks()
    twin = copy.deepcopy(model)
    run = compiled(model)
    rates = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    for _ in range(3):
        x = torch.randn(4, WIDTH)
        for call, rate in zip((run, twin), rates, strict=True):
            rate.zero_grad()
            call(x).square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None and q.grad.any()
            torch.testing.assert_close(p.grad, q.grad)
        for rate in rates:
            rate.step()
    (graph,) = compiled_graphs(model)
    assert graph.plan.num_partitions == 6 and graph.plan.num_distinct == 3 == len(compiles)


def test_cuda_graphs_share_nothing(compiles: list[torch.fx.GraphModule]) -> None:
    model = Blocks()
    options = {"cache_bytes": "40KiB", "inductor": {"triton.cudagraphs": True}}
    with torch.no_grad():
        torch.compile(model, backend="l2partition", options=options)(torch.randn(4, WIDTH))
    assert len(compiles) == 6


def key(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """The key of a function as Dynamo traces it."""
    found: list[Any] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        nodes = list(gm.graph.nodes)
        gm.meta.clear()
        values = [value_of(node) for node in nodes if node.op == "placeholder"]
        found.append((stage_key(gm, values, [value_of(node) for node in nodes[-1].all_input_nodes]), gm))
        return gm

    torch._dynamo.reset()
    torch.compile(function, backend=backend)(*inputs)
    ((result, gm),) = found
    KEPT.append(gm)
    return result


KEPT: list[torch.fx.GraphModule] = []


def base(x: Tensor, y: Tensor) -> Tensor:
    return FUNCTIONAL.layer_norm(torch.relu(x) + y, (8,), eps=1e-5) * 2


def renamed(a: Tensor, b: Tensor) -> Tensor:
    first = torch.relu(a)
    other = first + b
    return FUNCTIONAL.layer_norm(other, (8,), eps=1e-5) * 2


def made(seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), **options)


def test_names_and_values_do_not_count() -> None:
    assert key(base, made(), made(1)) == key(renamed, made(2), made(3))


def flat(offset: int) -> Tensor:
    return torch.randn(64)[offset : offset + 32].view(4, 8)


def two_of_one_storage() -> tuple[Tensor, Tensor]:
    both = torch.randn(2, 4, 8)
    return both[0], both[1]


NEAR_TWINS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "eps": (lambda x, y: FUNCTIONAL.layer_norm(torch.relu(x) + y, (8,), eps=1e-6) * 2, (made(), made())),
    "constant": (lambda x, y: FUNCTIONAL.layer_norm(torch.relu(x) + y, (8,), eps=1e-5) * 3, (made(), made())),
    "kind of constant": (
        lambda x, y: FUNCTIONAL.layer_norm(torch.relu(x) + y, (8,), eps=1e-5) * 2.0,
        (made(), made()),
    ),
    "operator": (lambda x, y: FUNCTIONAL.layer_norm(torch.tanh(x) + y, (8,), eps=1e-5) * 2, (made(), made())),
    "structure": (lambda x, y: FUNCTIONAL.layer_norm(y + torch.relu(x), (8,), eps=1e-5) * 2, (made(), made())),
    "outputs": (
        lambda x, y: (torch.relu(x) + y, FUNCTIONAL.layer_norm(torch.relu(x) + y, (8,), eps=1e-5) * 2),
        (made(), made()),
    ),
    "dtype": (base, (made(dtype=torch.float64), made())),
    "shape": (base, (torch.randn(5, 8), torch.randn(5, 8))),
    "stride": (base, (torch.randn(8, 4).t(), made())),
    "gradient": (base, (made(requires_grad=True), made())),
    "parameter": (base, (nn.Parameter(made(), requires_grad=False), made())),
    "one storage": (base, two_of_one_storage()),
    "offset": (base, (flat(8), made())),
    "size of the storage": (base, (flat(0), made())),
}


@pytest.mark.parametrize("name", list(NEAR_TWINS))
def test_near_twins_are_not_alike(name: str) -> None:
    function, inputs = NEAR_TWINS[name]
    assert key(base, made(), made()) != key(function, *inputs)


def test_the_share_that_dropout_drops_counts() -> None:
    halves, fifths = (lambda x, p=p: FUNCTIONAL.dropout(x, p, True) for p in (0.5, 0.2))
    assert key(halves, made()) != key(fifths, made())
    assert key(halves, made()) == key(lambda x: FUNCTIONAL.dropout(x, 0.5, True), made())


def with_inputs(*make: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The key of an empty graph whose inputs are made of two fake tensors of 64 numbers."""
    gm = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    with new_fake_mode(None):
        first, second = torch.empty(64), torch.empty(64)
        return stage_key(gm, [function(first, second) for function in make], [])


def test_each_thing_that_is_known_of_inputs_counts_alone() -> None:
    assert with_inputs(lambda a, b: a[:32]) == with_inputs(lambda a, b: b[:32])
    assert with_inputs(lambda a, b: a[:32]) != with_inputs(lambda a, b: a[8:40])  # offset
    assert with_inputs(lambda a, b: a[:32]) != with_inputs(lambda a, b: torch.empty(65)[:32])  # size of the storage
    assert with_inputs(lambda a, b: a.view(8, 8)) != with_inputs(lambda a, b: a.view(8, 8).t())  # strides
    shared = with_inputs(lambda a, b: a[:32], lambda a, b: a[32:])
    assert shared != with_inputs(lambda a, b: a[:32], lambda a, b: b[32:])  # storages


def with_attribute(value: Any) -> tuple[Any, torch.fx.GraphModule]:
    """The key of a graph that reads an attribute of its module."""
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("held"),))
    root = nn.Module()
    root.held = value
    gm = torch.fx.GraphModule(root, graph)
    return stage_key(gm, [], []), gm


def test_constants_and_modules_are_like_themselves_only() -> None:
    constant = torch.ones(3)
    assert with_attribute(constant)[0] == with_attribute(constant)[0]
    assert with_attribute(constant)[0] != with_attribute(constant.clone())[0]
    assert with_attribute(nn.ReLU())[0] != with_attribute(nn.ReLU())[0]


def test_bodies_of_higher_order_operators_are_compared_by_their_code() -> None:
    first, second, other = (torch.fx.symbolic_trace(f) for f in (lambda x: x + 1, lambda y: y + 1, lambda x: x + 2))
    assert with_attribute(first)[0] == with_attribute(second)[0]
    assert with_attribute(first)[0] != with_attribute(other)[0]


_SECOND = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_stage_key import Blocks, WIDTH, compiled
from torch._dynamo.utils import counters
torch.manual_seed(0)
with torch.no_grad():
    compiled(Blocks())(torch.randn(4, WIDTH))
found = counters["inductor"]
print("counts", found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.mark.slow
def test_a_second_process_starts_from_the_cache_on_disk(tmp_path: Path) -> None:
    def counts() -> list[int]:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        script = _SECOND.format(folder=str(Path(__file__).parent))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return [int(number) for number in done.stdout.split("counts")[1].split()]

    hits, misses, whole = counts()
    assert misses == 3 and hits == whole == 0
    hits, misses, whole = counts()
    assert misses == 0 and hits == whole == 3
