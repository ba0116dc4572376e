"""A dimension of an input under ``mark_unbacked`` behaves like a dynamic one."""

import pytest
import torch
from torch import nn

from fx_partition.report.compiled_plans import compiled_graphs


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(6)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.t(), x


@pytest.mark.parametrize("mark", [torch._dynamo.mark_dynamic, torch._dynamo.decorators.mark_unbacked])
def test_every_size_runs_in_partitions_that_were_compiled_once(mark):
    torch._dynamo.reset()
    model = Layers()
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "40KiB"})
    x = torch.randn(4, 64)
    mark(x, 0)
    for rows in (4, 7, 2, 30):
        x = x if rows == 4 else torch.randn(rows, 64)
        with torch.no_grad():
            result, expected = compiled(x), model(x)
        torch.testing.assert_close(result, expected)
        assert [r.stride() for r in result] == [e.stride() for e in expected]
    (graph,) = compiled_graphs(compiled)
    assert graph.plan.num_partitions == 3
    assert list(graph.plan.bindings.values()) == [4] and graph.plan.assumed == {}


def test_a_run_time_size_inside_keeps_its_steps_together_and_no_others():
    torch._dynamo.reset()

    class Model(Layers):
        def forward(self, x):
            (y, _), n = super().forward(x), x.shape[0]
            return y.t()[y[0] > -n] * n

    model = Model()
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "40KiB"})
    x = torch.randn(4, 64)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(compiled(x[:3]), model(x[:3]))
    (graph,) = compiled_graphs(compiled)
    assert graph.plan.num_partitions == 4, "three for the layers, and one for what is of a guessed size"
