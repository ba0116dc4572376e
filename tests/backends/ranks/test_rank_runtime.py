"""A graph on several ranks gives what it gives on one, bit by bit.

Ranks are threads here, and their connections are queues without tags: a message that is received out of order, a value
that is not sent, or two ranks that wait for each other show at once, in random graphs on many ranks.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from torch import Tensor

from fx_partition.backends.lowering.stage import Boundaries, Stage
from fx_partition.backends.ranks.runtime import RankFunction
from fx_partition.backends.ranks.schedule import Messages
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph

CPU = torch.device("cpu")


class Lines:
    """Connections of all ranks: a queue for each pair and direction; what is sent is read when it is received."""

    def __init__(self) -> None:
        self.queues: defaultdict[tuple[int, int], queue.Queue[tuple[int, Tensor]]] = defaultdict(queue.Queue)
        self.bytes = 0


class Receiving:
    """Takes the next of a queue when it is waited for; receives are waited for in the order of their posts."""

    def __init__(self, line: queue.Queue[tuple[int, Tensor]], tensor: Tensor, tag: int) -> None:
        self._line, self._tensor, self._tag = line, tensor, tag

    def wait(self) -> None:
        sent, value = self._line.get(timeout=10)
        assert (sent, value.shape, value.dtype) == (self._tag, self._tensor.shape, self._tensor.dtype)
        self._tensor.copy_(value)


class Rank:
    """One rank's end of the lines, with the interface of `rank_team.Team`."""

    def __init__(self, lines: Lines, rank: int, size: int) -> None:
        self.rank, self.size, self._lines = rank, size, lines

    def begin(self, stages: dict[int, str]) -> None:
        pass

    def next_graph(self) -> int:
        return 0

    def finish(self) -> None:
        pass

    def send(self, tensor: Tensor, rank: int, tag: int) -> None:
        assert tensor.is_contiguous()
        self._lines.bytes += tensor.nbytes
        self._lines.queues[self.rank, rank].put((tag, tensor))

    def post(self, tensor: Tensor, rank: int, tag: int) -> Receiving:
        return Receiving(self._lines.queues[rank, self.rank], tensor, tag)

    def raised(self, where: str, error: BaseException) -> None:
        raise AssertionError(where) from error


def rank_functions(captured: CapturedGraph, ranks: Sequence[int], size: int, output: str = "all") -> list[RankFunction]:
    """The function of each rank, for stages that were cut as evenly as they can be; nothing is compiled."""
    memory = analyze_memory(captured)
    plan = make_plan(captured, memory, Request.check(None, len(ranks), order="trace"))
    captured = planned_graph(captured, plan)
    partitions = cut(captured, plan)
    boundaries = Boundaries(captured, partitions)
    stages = [Stage(i, CPU, partition, boundaries) for i, partition in enumerate(partitions)]
    ranks = ranks[: len(stages)]
    messages = Messages(captured, partitions, ranks, size, output, memory.written)
    lines = Lines()
    functions = []
    for rank in range(size):
        own = [stage for stage in stages if ranks[stage.index] == rank]
        team: Any = Rank(lines, rank, size)
        functions.append(RankFunction(captured, own, [s.partition.module for s in own], messages, team, {}, CPU))
    return functions


def call_all(functions: Sequence[Callable[..., Any]], given: Sequence[Sequence[Any]]) -> list[Any]:
    """Call every rank's function in its own thread."""
    results: list[Any] = [None] * len(functions)

    def run(rank: int) -> None:
        try:
            results[rank] = functions[rank](*given[rank])
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def spoiled(inputs: Sequence[Any]) -> list[Any]:
    """Inputs of the same shapes without the contents."""
    return [torch.zeros_like(x) if isinstance(x, Tensor) else x for x in inputs]




@settings(deadline=None, max_examples=60)
@given(graphs(), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.sampled_from(["all", "last"]))
def test_random_graphs_on_random_ranks(
    model: tuple[torch.fx.GraphModule, tuple[Tensor, ...]], ranks: list[int], output: str
) -> None:
    gm, inputs = model
    expected = gm(*(x.clone() for x in inputs))
    functions = rank_functions(capture(gm, inputs), ranks, 4, output)
    for _ in range(2):
        results = call_all(functions, [inputs, *(spoiled(inputs) for _ in range(3))])
        returned = [result for result in results if result[0] is not None]
        assert len(returned) == (4 if output == "all" else 1)
        for result in returned:
            assert all(torch.equal(f, e) and f.stride() == e.stride() for f, e in zip(result, expected, strict=True))
