"""Autocast and grad-mode regions are entered and left in one module, and no mode stays on after a failure."""

import operator

import pytest
import torch
from torch import Tensor, nn

from fx_partition.passes.capture.autocast_regions import Regions, under_autocast
from fx_partition.passes.capture.whole_regions import left_modes, switches_gradients


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = x @ x
            with torch.autocast("cpu", enabled=False):
                x = x.float() @ x.float()
        with torch.no_grad():
            return x + 1


def nested() -> torch.fx.Graph:
    graphs = []

    def keep(gm: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(gm.graph)
        return gm

    torch._dynamo.reset()
    torch.compile(Nested(), backend=keep, fullgraph=True)(torch.ones(4, 4))
    return graphs[0]


def test_the_regions_of_each_product_and_the_dtypes_under_them() -> None:
    graph, regions = nested(), Regions()
    found = []
    for node in graph.nodes:
        if node.target is operator.matmul:
            with under_autocast(regions.open):
                found.append((len(regions.open), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
        regions.pass_node(node)
    assert found == [(1, torch.bfloat16), (2, torch.float32)]
    assert not regions.open
    assert regions.grad is not None
    assert [switches_gradients(node) for node in graph.nodes].count(True) == 2, "no_grad is entered and left"


def test_a_run_that_fails_in_both_regions_leaves_them() -> None:
    graph = nested()
    failing = [node for node in graph.nodes if node.target is operator.matmul][1]

    class Failing(torch.fx.Interpreter):
        def __init__(self) -> None:
            super().__init__(torch.fx.GraphModule({}, graph), garbage_collect_values=False)
            self.values: dict[torch.fx.Node, object] = {}

        def run_node(self, n: torch.fx.Node) -> object:
            if n.name == failing.name:
                assert not torch.is_autocast_enabled("cpu"), "the inner region is on"
                raise ValueError("no product")
            self.values[n] = super().run_node(n)
            return self.values[n]

    run = Failing()
    assert isinstance(run.module, torch.fx.GraphModule)
    with pytest.raises(ValueError, match="no product"), left_modes(run.module.graph, run.values):
        run.run(torch.ones(4, 4))
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
