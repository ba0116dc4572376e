"""Weights are bytes of storages: tied and viewed ones once, disjoint views apart, gathers by the row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fx_partition
from fx_partition.passes.capture import capture
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.weights import find_weights


def sizes(**tensors: Tensor) -> tuple[dict[str, int], list[int]]:
    found = find_weights({key: (key, tensor) for key, tensor in tensors.items()})
    return dict(found.of), [int(size) for size in found.bytes]


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


def test_a_parameter_is_told_from_a_buffer() -> None:
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
        plan = fx_partition.plan(Lookup(), "1GiB", example_inputs=ids)
        assert plan.partitions[0].weight_bytes == expected


def test_a_tied_table_counts_whole_and_once() -> None:
    class Tied(Lookup):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) @ self.table.t()

    plan = fx_partition.plan(Tied(), "1GiB", example_inputs=torch.zeros(5, dtype=torch.long))
    assert plan.partitions[0].weight_bytes == 32000


def test_a_written_input_is_state() -> None:
    class Cache(nn.Module):
        def forward(self, x: Tensor, cache: Tensor) -> Tensor:
            cache[0:1].copy_(x)
            return cache.sum(0)

    traced = torch.fx.symbolic_trace(Cache())
    inputs = (torch.zeros(1, 4), torch.zeros(16, 4))
    facts = gather_facts(capture(traced, inputs))
    assert facts.written == {"cache"} and {facts.weight_names[n] for n in facts.state} == {"cache"}
    plan = fx_partition.plan(traced, "1GiB", example_inputs=inputs)
    assert plan.partitions[0].state_bytes == 256 and plan.partitions[0].weight_bytes == 0
