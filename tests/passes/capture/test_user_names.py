"""Names of tracers become names that a user knows."""

import pytest
import torch
from torch import Tensor, nn

from fx_partition.passes.capture.user_names import module_path, user_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("L['self']._modules['layers']._modules['0']._parameters['weight']", "layers.0.weight"),
        ("L['self']._buffers['calls']", "calls"),
        ("L['kwargs']['input_ids']", "input_ids"),
        ("L['x']", "x"),
        ("L['args'][1]", "args.1"),
        ("G['table']", "table"),
    ],
)
def test_names_that_a_user_knows(source: str, name: str) -> None:
    assert user_name(source) == name


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x) + 1


@pytest.mark.parametrize("tracer", ["export", "dynamo", "symbolic_trace"])
def test_the_module_of_a_node_by_its_path(tracer: str) -> None:
    model, graphs = Layers(), []
    if tracer == "export":
        graphs.append(torch.export.export(model, (torch.ones(2, 4),)).module().graph)
    elif tracer == "symbolic_trace":
        graphs.append(torch.fx.symbolic_trace(model).graph)
    else:
        torch._dynamo.reset()
        torch.compile(model, backend=lambda gm, _: graphs.append(gm.graph) or gm.forward)(torch.ones(2, 4))
    paths = [module_path(node) for node in graphs[0].nodes if node.op.startswith("call_") and node.name != "_guards_fn"]
    assert paths[0] == "layers.0"
    assert paths[-1] == "", "the sum is the model's own"
