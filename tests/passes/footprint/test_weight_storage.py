"""Weights count by storage: tied and viewed ones once, disjoint views separately, gathers by the row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.symbolic_sizes import evaluate
from fx_partition.passes.capture.tensor_storage import span
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.weight_storage import find_weights


def sizes(**tensors: Tensor) -> tuple[dict[str, int], list[int]]:
    found = find_weights({key: (key, tensor) for key, tensor in tensors.items()})
    return dict(found.of), [int(size) for size in found.bytes]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4)[:, 1],
        torch.zeros(5, 6).t()[1:3],
        torch.zeros(4).expand(3, 4),
        torch.zeros(()),
        torch.zeros(0, 4),
        torch.zeros(3, 0),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} by {tensor.stride()}",
)
def test_a_span_holds_every_element_and_ends_with_the_last(tensor: Tensor) -> None:
    elements = span(tensor.shape, tensor.stride())
    torch.zeros(elements).as_strided(tensor.shape, tensor.stride())
    if tensor.numel():
        with pytest.raises(RuntimeError, match="out of bounds"):
            torch.empty(0).set_(torch.zeros(elements - 1).untyped_storage()).as_strided(tensor.shape, tensor.stride())
    else:
        assert elements == 0


def test_tied_and_viewed_tensors_are_one_weight() -> None:
    w = torch.zeros(4, 8)
    of, found = sizes(a=w, b=w, c=w.t(), d=w[1:3])
    assert set(of.values()) == {0} and found == [128]


def test_disjoint_views_are_apart_and_overlapping_ones_are_together() -> None:
    flat = torch.zeros(100)
    of, found = sizes(a=flat[:40], b=flat[40:70], c=flat[60:80])
    assert of["b"] == of["c"] != of["a"]
    assert sorted(found) == [160, 160]  # [0, 40) and [40, 80), 4 bytes each
    of, found = sizes(a=flat[:10], whole=flat, z=flat[90:])
    assert len(set(of.values())) == 1 and found == [400]


def test_separate_storages_empty_and_strided() -> None:
    of, found = sizes(a=torch.zeros(3), b=torch.zeros(3), e=torch.zeros(0), s=torch.zeros(10)[::3])
    assert len(set(of.values())) == 4
    assert [found[of[key]] for key in "abes"] == [12, 12, 0, 40]


def test_a_parameter_and_a_buffer_are_distinguished() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    found = find_weights({"p": ("p", parameter), "b": ("b", torch.zeros(3))})
    assert found.parameters == {found.of["p"]}


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1000, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table)


def test_a_gather_counts_rows_up_to_the_table() -> None:
    for rows, expected in ((5, 5 * 32), (1000, 32000), (5000, 32000)):
        ids = torch.zeros(rows, dtype=torch.long)
        plan = fx_partition.plan(Lookup(), ids, cache_bytes="1GiB")
        assert plan.partitions[0].weight_bytes == expected


def test_a_tied_table_counts_whole_and_once() -> None:
    class Tied(Lookup):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) @ self.table.t()

    plan = fx_partition.plan(Tied(), torch.zeros(5, dtype=torch.long), cache_bytes="1GiB")
    assert plan.partitions[0].weight_bytes == 32000


class Views(nn.Module):
    """Reads parts of one weight of 64 x 16 floats (4096 bytes)."""

    def __init__(self, *readers: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 16))
        self.readers = readers

    def forward(self, x: Tensor) -> list[Tensor]:
        return [reader(x, self.weight) for reader in self.readers]


@pytest.mark.parametrize(
    ("reader", "expected"),
    [
        (lambda x, w: x @ w[:8].t(), 512),
        (lambda x, w: x @ w.t()[:, 8:24], 1024),
        (lambda x, w: x[:, :4] @ w[:, :4].t(), 1024),
        (lambda x, w: x @ w.narrow(0, 3, 5).t(), 320),
        (lambda x, w: x @ w.chunk(4)[1].t(), 1024),
        (lambda x, w: x @ w.split([16, 48])[1].t(), 3072),
        (lambda x, w: x @ w[:32][4:6].t(), 128),
        (lambda x, w: x * w[3], 64),
        (lambda x, w: x @ w.t(), 4096),
        (lambda x, w: x @ w.view(16, 64), 4096),
        (lambda x, w: x @ w.t().t().t(), 4096),
        (lambda x, w: F.linear(x, w[:8], w[8:9, 0:1].expand(1, 8)[0]), 512 + 32),  # a repeated view counts repeated
        (lambda x, w: F.linear(x, w[:40], w[:40, 0]), 2560 + 160),  # overlapping ones count twice
        (lambda x, w: F.embedding(x.long()[:, 0], w[:2]), 128),  # three rows of two
        (lambda x, w: F.embedding(x.long()[:, 0], w[:8]), 192),  # three rows of eight
    ],
)
def test_a_view_counts_what_it_shows(reader: Callable[[Tensor, Tensor], Tensor], expected: int) -> None:
    x = torch.zeros(3, 16)
    for source in (torch.fx.symbolic_trace(Views(reader)), torch.export.export(Views(reader), (x,))):
        plan = fx_partition.plan(source, x, cache_bytes="1GiB")
        assert plan.partitions[0].weight_bytes == expected
        assert plan.partitions[0].weight == expected


def test_views_add_up_to_the_whole_at_most() -> None:
    def half(x: Tensor, w: Tensor) -> Tensor:
        return x @ w[:32].t()

    def other_half(x: Tensor, w: Tensor) -> Tensor:
        return x @ w[32:].t()

    def again(x: Tensor, w: Tensor) -> Tensor:
        return x @ w[16:48].t()

    x = torch.zeros(3, 16)
    for readers, expected in (((half, other_half), 4096), ((half, again, other_half), 4096), ((half, half), 4096)):
        memory = analyze_memory(capture(torch.fx.symbolic_trace(Views(*readers)), x))
        assert [size for step in memory.steps for size in step.weights.values()] == [2048] * len(readers)
        assert memory.weight_size(0, len(memory.steps), state=False) == expected
        plan = fx_partition.plan(Views(*readers), x, cache_bytes="1GiB")
        assert plan.partitions[0].weight_bytes == expected
        apart = fx_partition.plan(Views(*readers), x, cache_bytes=2048 + 192 + 384 * len(readers))
        assert apart.num_partitions >= 2
        assert all(p.weight_bytes == 2048 for p in apart.partitions)


def test_a_view_of_symbolic_length_counts_symbolically() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(100, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[0]]

    program = torch.export.export(
        Positions(), (torch.zeros(5, 4),), dynamic_shapes=({0: torch.export.Dim("n", max=100)},)
    )
    plan = fx_partition.plan(program, cache_bytes="1GiB")
    assert plan.partitions[0].weight_bytes == 80
    longer = fx_partition.plan(program, cache_bytes="1GiB", bind={"x.0": 60})
    assert longer.partitions[0].weight_bytes == 960
    assert evaluate(plan.partitions[0].weight, {plan.symbols.dims["x.0"]: 60}) == 960


def test_a_written_view_is_all_of_its_weight() -> None:
    """A weight that is written lives on one device, whole."""

    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.memory[0:1].copy_(x)
            return x + 1

    plan = fx_partition.plan(Cache(), torch.zeros(1, 4), cache_bytes="1GiB")
    assert plan.partitions[0].state_bytes == 256


def test_a_written_input_is_state() -> None:
    class Cache(nn.Module):
        def forward(self, x: Tensor, cache: Tensor) -> Tensor:
            cache[0:1].copy_(x)
            return cache.sum(0)

    traced = torch.fx.symbolic_trace(Cache())
    inputs = (torch.zeros(1, 4), torch.zeros(16, 4))
    memory = analyze_memory(capture(traced, inputs))
    assert memory.written == {"cache"} and {memory.weight_names[n] for n in memory.state} == {"cache"}
    plan = fx_partition.plan(traced, inputs, cache_bytes="1GiB")
    assert plan.partitions[0].state_bytes == 256 and plan.partitions[0].weight_bytes == 0
