"""The graph of a stage runs on another device than the model's.

The numbers, with a model on GPUs that are not there and stages on the CPU; the text, for what only GPUs can run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_fake_gpus import FakeGpus, gpus  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fx_partition.backends.lowering.graph_edits import retarget

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


def traced(function: Callable[..., Any], *args: Tensor) -> torch.fx.GraphModule:
    """Dynamo's graph of a function of fake tensors."""
    found: list[torch.fx.GraphModule] = []

    def keep(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(copy.deepcopy(gm))
        return gm.forward

    torch.compile(function, backend=keep, fullgraph=True)(*args)
    return found[0]


def write_copies(x: Tensor) -> Any:
    """Each of these is a copy on the trace's devices."""
    copies = (
        x.to("cuda:1"),
        x.to(SECOND, torch.float32, False, False),
        x.to(device="cuda:1", memory_format=torch.preserve_format),
        x.cuda(1),
        x.cpu(),
        x.type("torch.FloatTensor"),
        x.cpu().cuda(),
    )
    for i, one in enumerate(copies):
        one.add_(i + 1)
    return copies


def test_a_copy_between_devices_that_become_one_is_a_copy_still(gpus: FakeGpus) -> None:  # noqa: F811
    gm = traced(write_copies, torch.empty(2, 3, device="cuda:0"))
    retarget(gm, FIRST, CPU)
    with unset_fake_temporarily():
        x = torch.zeros(2, 3)
        assert [result[0, 0].item() for result in gm(x)] == [1, 2, 3, 4, 5, 6, 7] and x[0, 0].item() == 0


def test_what_is_not_a_copy_stays_none(gpus: FakeGpus) -> None:  # noqa: F811
    gm = traced(lambda x: (x.to("cuda:0").add_(1), x.cuda().add_(1), x.to(x.device).add_(1), x), torch.empty(3).cuda())
    retarget(gm, FIRST, CPU)
    with unset_fake_temporarily():
        x = torch.zeros(3)
        gm(x)
        assert x.tolist() == [3, 3, 3]


def test_autocast_is_for_the_stage_s_kind_of_device(gpus: FakeGpus) -> None:  # noqa: F811
    def multiply(x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return x @ x

    gm = traced(multiply, torch.empty(4, 4, device="cuda:0"))
    before = copy.deepcopy(gm)
    retarget(gm, FIRST, CPU)
    retarget(before, FIRST, SECOND)
    with unset_fake_temporarily():
        assert gm(torch.ones(4, 4))[0].dtype == torch.bfloat16
    for module, kind in ((gm, "cpu"), (before, "cuda")):
        (entered,) = (node for node in module.graph.nodes if getattr(node.target, "__name__", "") == "_enter_autocast")
        assert entered.args[0] == kind


def test_bodies_of_operators_run_there_too(gpus: FakeGpus) -> None:  # noqa: F811
    def choose(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + torch.ones(3, device="cuda:0"), lambda x: x - 1, (x,))

    gm = traced(choose, torch.empty(3, device="cuda:0"))
    retarget(gm, FIRST, CPU)
    with unset_fake_temporarily():
        assert torch.equal(gm(torch.ones(3))[0], torch.full((3,), 2.0))


def test_operators_of_export(gpus: FakeGpus) -> None:  # noqa: F811
    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = x.to("cuda:1")
            z = x.to(torch.float16)
            return y.add_(1), x, z + torch.arange(3, device="cuda"), x.new_zeros(3, device=SECOND)

    program = torch.export.export(Net(), (torch.empty(3, device="cuda:0"),))
    gm = program.module(check_guards=False)
    retarget(gm, FIRST, CPU)
    with unset_fake_temporarily():
        found = gm(torch.zeros(3))
    assert [result.tolist() for result in found] == [[1, 1, 1], [0, 0, 0], [0, 1, 2], [0, 0, 0]]


def by_hand(target: Any, *args: Any, made: Tensor | None = None, **kwargs: Any) -> torch.fx.Node:
    """One operator of an input, retargeted from the CPU to the second GPU."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.empty(3)
    args = tuple(x if arg == "x" else arg for arg in args)
    node = graph.create_node("call_method" if isinstance(target, str) else "call_function", target, args, kwargs)
    node.meta["example_value"] = torch.empty(3) if made is None else made
    graph.output((node,))
    retarget(torch.fx.GraphModule({}, graph), CPU, SECOND)
    return node


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (by_hand(torch.zeros, 3, pin_memory=True), "zeros(3, pin_memory=False, device=device(type='cuda', index=1))"),
        (by_hand(torch.zeros, 3, device=CPU, pin_memory=True), "zeros(3, device=device(type='cuda', index=1), pin_mem"),
        (by_hand("pin_memory", "x"), "x.clone()"),
        (by_hand("cpu", "x"), "x.to(device(type='cuda', index=1))"),
        (by_hand("to", "x", "cpu", torch.float64), "x.to(device(type='cuda', index=1), torch.float64)"),
        (by_hand("type", "x", "torch.FloatTensor"), "x.to(device(type='cuda', index=1), dtype = torch.float32)"),
        (by_hand(torch.as_tensor, "x", None, "cpu"), "as_tensor(x, None, device=device(type='cuda', index=1))"),
        (by_hand(torch.from_numpy, "x"), "from_numpy(x)"),
        (by_hand(torch.ops.aten.full.default, [3], 1), "full.default([3], 1, device = device(type='cuda', index=1))"),
        (by_hand(torch.einsum, "cpu", "x"), "einsum('cpu', x)"),
    ],
)
def test_forms_of_a_model_on_the_cpu(node: torch.fx.Node, text: str) -> None:
    code = node.graph.python_code("self").src.replace(" = ", "=").replace(" ", "")
    assert text.replace(" = ", "=").replace(" ", "") in code, code


def test_what_takes_no_device_is_moved_once_made() -> None:
    node = by_hand(torch.from_numpy, None)
    (moved,) = node.users
    assert moved.target == "to" and moved.args == (node, SECOND)
    (output,) = moved.users
    assert output.op == "output"


@pytest.mark.parametrize("named", [0, "cuda:0", "cuda", FIRST, torch.device("cuda")])
def test_forms_of_a_model_on_a_gpu(named: Any) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    nodes = [
        graph.call_function(torch.ones, (3,), {"device": named}),
        graph.call_method("to", (x, named)),
        graph.call_method("to", (x,), {"device": named, "dtype": torch.float16}),
        graph.call_method("cuda", (x, named)),
        graph.call_method("cuda", (x,), {"device": named, "non_blocking": True}),
    ]
    graph.output(nodes)
    retarget(torch.fx.GraphModule({}, graph), FIRST, SECOND)
    assert [node.target for node in nodes] == [torch.ones, "to", "to", "to", "to"]
    assert nodes[0].kwargs == {"device": SECOND} and nodes[1].args == nodes[3].args == nodes[4].args == (x, SECOND)
    assert nodes[2].kwargs == {"device": SECOND, "dtype": torch.float16} and nodes[4].kwargs == {"non_blocking": True}


def test_numbers_that_are_not_devices_stay() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    nodes = [graph.call_method("to", (x, torch.float16, True)), graph.call_function(torch.full, ((3,), 0))]
    graph.output(nodes)
    before = [(node.args, node.kwargs) for node in nodes]
    retarget(torch.fx.GraphModule({}, graph), FIRST, SECOND)
    assert [(node.args, node.kwargs) for node in nodes] == before
