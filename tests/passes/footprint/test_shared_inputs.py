"""Inputs that are views of something larger, or of one another, count each byte once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_stages import use_eager_stages
from torch import Tensor, nn

from fx_partition.backends.lowering.dynamo_graph import capture_dynamo
from fx_partition.common.errors import UnreadableError
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory, Role
from fx_partition.passes.footprint.shared_inputs import overlapping, refuse_written_aliases, shown_bytes
from fx_partition.report.compiled_plans import compiled_graphs

DATA = torch.zeros(64, 8)


@pytest.mark.parametrize(
    ("tensors", "groups", "sizes"),
    [
        ([DATA[4:8]], [[0]], [128]),
        ([DATA[:4], DATA[8:12]], [[0], [1]], [128, 128]),
        ([DATA[:4], DATA[2:6]], [[0, 1]], [192]),
        ([DATA[:4], DATA[:4].view(2, 16)], [[0, 1]], [128]),
        ([DATA[:4], torch.ones(3), DATA[3:5], DATA[60:]], [[0, 2], [1], [3]], [160, 12, 128]),
        ([DATA[:, :2]], [[0]], [512]),
        ([DATA[:, :2], DATA[:, 2:4]], [[0, 1]], [1024]),
        ([DATA[:1].expand(16, 8)], [[0]], [32]),
        ([DATA[:0], DATA[:2]], [[0], [1]], [0, 64]),
    ],
)
def test_what_overlaps_and_what_it_shows(tensors: list[Tensor], groups: list[list[int]], sizes: list[int]) -> None:
    assert overlapping(tensors) == groups
    assert [shown_bytes([tensors[i] for i in group]) for group in groups] == sizes


def memory_of(function: Callable[..., Any], *inputs: Tensor, dynamic: bool | None = None) -> GraphMemory:
    found: list[GraphMemory] = []

    def keep(gm: torch.fx.GraphModule, given: list[Any]) -> Callable[..., Any]:
        found.append(analyze_memory(capture_dynamo(gm, given)))
        return gm.forward

    torch.compile(function, backend=keep, dynamic=dynamic)(*inputs)
    (memory,) = found
    return memory


def inputs_of(memory: GraphMemory) -> list[Any]:
    return [value.bytes for value in memory.values if value.role is Role.INPUT]


def total(*tensors: Tensor) -> Tensor:
    return sum(tensor.sum() for tensor in tensors)


def test_inputs_of_dynamo() -> None:
    assert inputs_of(memory_of(total, DATA[4:8])) == [128]
    assert inputs_of(memory_of(total, DATA[:4], DATA[8:12])) == [128, 128]
    assert inputs_of(memory_of(total, DATA[:4], DATA[2:6])) == [192]
    assert inputs_of(memory_of(total, DATA[:1].expand(16, 8))) == [32]


def test_symbolic_slices_count_what_they_show_and_may_overlap() -> None:
    memory = memory_of(total, DATA[4:8], DATA[20:27], dynamic=True)
    (size,) = inputs_of(memory)
    assert size.subs(memory.symbols.hints) == 11 * 32


def test_a_batch_of_a_data_set_is_planned_like_a_copy_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    data = torch.randn(4096, 64)
    plans = []
    for x in (data[:4], data[:4].clone()):
        torch._dynamo.reset()  # the code of the first model would run the second
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
        options = {"cache_bytes": "20KiB", "oversize": "error"}
        with torch.no_grad():
            compiled = torch.compile(model, backend="l2partition", options=options)
            compiled(x)
        plans.append([(p.nodes, p.total_bytes) for p in compiled_graphs(model)[0].plan.partitions])
    assert plans[0] == plans[1] and len(plans[0]) == 4


def through_both(a: Tensor, b: Tensor) -> Any:
    early = b * 2
    a.add_(1)
    late = b * 3
    b.mul_(2)
    return early.relu(), late.relu(), a + 1


@pytest.mark.parametrize("rows", [slice(2, 6), slice(8, 12)])
@torch.no_grad()
def test_a_write_into_one_is_seen_in_the_other(rows: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    use_eager_stages(monkeypatch)
    mine, other = (torch.arange(128.0).reshape(16, 8) for _ in range(2))
    wanted = through_both(mine[:4], mine[rows])
    compiled = torch.compile(through_both, backend="l2partition", options={"cache_bytes": 1})
    found = compiled(other[:4], other[rows])
    assert all(map(torch.equal, found, wanted)) and torch.equal(mine, other)
    memory = memory_of(through_both, mine[:4], mine[rows])
    assert len({memory.weight_of[name] for name in memory.written}) == (1 if rows.start == 2 else 2)


@torch.no_grad()
def test_a_view_of_a_buffer_that_is_passed_in_is_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.arange(32.0).reshape(4, 8))

        def forward(self, x: Tensor) -> Any:
            early = x * 2
            self.state.add_(1)
            return early, x * 3

    use_eager_stages(monkeypatch)
    mine, other = Counter(), Counter()
    wanted = mine(mine.state[1:3])
    found = torch.compile(other, backend="l2partition", options={"cache_bytes": 1})(other.state[1:3])
    assert all(map(torch.equal, found, wanted)) and torch.equal(mine.state, other.state)


def test_written_inputs_that_overlap_are_not_copied_to_other_devices() -> None:
    with pytest.raises(UnreadableError, match=r"l_a_ and l_b_ share memory that the graph writes"):
        refuse_written_aliases(memory_of(through_both, DATA[:4], DATA[2:6]))
    refuse_written_aliases(memory_of(through_both, DATA[:4], DATA[8:12]))
