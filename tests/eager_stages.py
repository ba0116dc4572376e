"""Stage code without inductor, for tests of graphs and values: quick, and as strict about what crosses boundaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor

from fx_partition.backends.dynamo import graph_compiler
from fx_partition.backends.lowering import compile_stages


def use_eager_stages(monkeypatch: Any) -> None:
    """Let the backend compile stages, and whole graphs, by AOTAutograd alone."""

    def compile_part(gm: torch.fx.GraphModule, inputs: Sequence[Any], options: Any) -> Callable[..., Any]:
        modes = [value.fake_mode for value in inputs if isinstance(value, FakeTensor)]
        with tracing(TracingContext(modes[0] if modes else None)):
            return compile_graph(gm, inputs, options)

    def compile_graph(gm: torch.fx.GraphModule, inputs: Sequence[Any], options: Any) -> Callable[..., Any]:
        compiled: Callable[..., Any] = aot_eager(gm, inputs)
        return compiled

    monkeypatch.setattr(compile_stages, "compile_part", compile_part)
    monkeypatch.setattr(graph_compiler, "compile_graph", compile_graph)
