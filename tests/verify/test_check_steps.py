"""Counts the lines that the checker runs: no walk may be quadratic, whatever reads what."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.fx

from fx_partition.passes import verify
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.verify.case import Fault
from fx_partition.passes.verify.check import find_faults

ROOM = str(Path(verify.__file__).parent)


def star(t: int, n: int) -> list[int]:
    """All read what the first makes."""
    return [0][:t]


def heads(t: int, n: int) -> list[int]:
    """As a star, and the last reads what all make."""
    return list(range(t)) if t == n - 1 else [0][:t]


def branches(t: int, n: int) -> list[int]:
    """Branches of four, side by side."""
    return [max(t - n // 4, 0)][:t]


def dense_skips(t: int, n: int) -> list[int]:
    """Two in three read the eight before them."""
    return list(range(max(t - 8, 0), t)) if t % 3 else []


def read_all(weight: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    """Run one node: it reads its weight and the results of other nodes."""
    return torch.stack(sources).sum(0) + weight.sum()


def as_graph(shape: Callable[[int, int], list[int]], n: int) -> CapturedGraph:
    """A graph whose weights differ, so that few plans are equally good."""
    graph, root = torch.fx.Graph(), torch.nn.Module()
    x = graph.placeholder("x")
    nodes: list[torch.fx.Node] = []
    for t in range(n):
        weight = torch.nn.Parameter(torch.empty(50 + t * 7919 % 997), requires_grad=False)
        root.register_parameter(f"w{t}", weight)
        read = [nodes[source] for source in shape(t, n)] or [x]
        nodes.append(graph.call_function(read_all, (graph.get_attr(f"w{t}"), *read)))
    graph.output(nodes[-1])
    return capture(torch.fx.GraphModule(root, graph), [torch.empty(8)])


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of the checker run; each round of a comprehension is one."""
    count = 0

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(ROOM) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("parts", [pytest.param("few", marks=pytest.mark.slow), "many"])
@pytest.mark.parametrize(
    "shape", [heads, branches, *(pytest.param(shape, marks=pytest.mark.slow) for shape in (star, dense_skips))]
)
def test_steps_of_a_check_grow_like_n_log_n(shape: Callable[[int, int], list[int]], parts: str) -> None:
    steps = []
    for n in (100, 400):
        captured = as_graph(shape, n)
        memory = analyze_memory(captured)
        whole = make_plan(captured, memory, Request.check(sys.maxsize, order="trace")).max_bytes
        plan = make_plan(captured, memory, Request.check(whole // (5 if parts == "few" else n // 12), order="trace"))
        assert plan.num_partitions > 4 and plan.tradeoffs
        found: list[Fault] = []
        steps.append(lines_of(lambda c=captured, p=plan, found=found: found.extend(find_faults(c, p))))
        assert found == []
    # A quadratic walk takes 16 times as many.
    assert steps[1] <= 5 * steps[0]
