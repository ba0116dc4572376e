"""Estimates of moved bytes agree with a cache simulated block by block, and with figures worked out by hand."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fx_partition.passes.batching.cache_traffic import Traffic
from fx_partition.passes.batching.microbatch_cost import Cost
from fx_partition.passes.batching.microbatch_size import plan_microbatches
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.symbolic_sizes import Evaluator, Symbols
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.flops import flops_by_node
from fx_partition.passes.footprint.graph_memory import ActivationStorage, GraphMemory, NodeMemory, Role
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request

MIB = 1 << 20


def chain(sizes: list[int], weights: list[int] | None = None) -> GraphMemory:
    """An input of sizes[0] bytes; step i makes a value of sizes[i + 1] of the one before, with a weight."""
    values = [ActivationStorage("x", sizes[0], Role.INPUT, -1)]
    values += [
        ActivationStorage(f"v{i}", size, Role.ACTIVATION, i, i + 2 == len(sizes)) for i, size in enumerate(sizes[1:])
    ]
    weights = weights or []
    steps = [
        NodeMemory(f"n{i}", "", (i, i + 1), {i: weights[i]} if i < len(weights) else {}) for i in range(len(sizes) - 1)
    ]
    names = [f"w{i}" for i in range(len(weights))]
    return GraphMemory(steps, values, list(weights), names, {}, frozenset(), Symbols())


def test_values_that_stay_in_the_cache_are_not_moved() -> None:
    memory = chain([32 * MIB] * 4)
    nodes = ["n0", "n1", "n2"]
    assert Traffic(memory).of([nodes], {}, 1, 16 * MIB) == 192 * MIB  # as in the docstring: too large, each
    small = chain([4 * MIB] * 4)
    assert Traffic(small).of([nodes], {}, 8, 16 * MIB) == 8 * (4 + 4 + 2 * 4) * MIB
    assert Traffic(small).of([nodes], {}, 1, 16 * MIB) == 8 * MIB


def test_a_boundary_is_written_and_fetched() -> None:
    memory = chain([MIB] * 4)
    nodes = ["n0", "n1", "n2"]
    whole = Traffic(memory).of([nodes], {}, 1, 64 * MIB)
    assert Traffic(memory).of([nodes[:1], nodes[1:]], {}, 1, 64 * MIB) == whole + 2 * MIB


@pytest.mark.parametrize("cache", [4, 20])
def test_weights_are_fetched_once_where_they_stay_between_microbatches(cache: int) -> None:
    memory = chain([MIB] * 3, [5 * MIB, 5 * MIB])
    once = Traffic(memory).of([["n0", "n1"]], {}, 1, cache * MIB)
    ten = Traffic(memory).of([["n0", "n1"]], {}, 10, cache * MIB)
    again = 0 if cache == 20 else 9 * 10 * MIB
    assert ten - 10 * MIB - again == 10 * (once - 10 * MIB) + 10 * 2 * MIB


class Lru:
    """A cache of single bytes in units, which writes back what was changed."""

    def __init__(self, size: int) -> None:
        self.lines: OrderedDict[tuple[int, int], bool] = OrderedDict()
        self.size, self.moved = size, 0

    def touch(self, value: int, units: int, *, made: bool) -> None:
        for unit in range(units):
            key = (value, unit)
            if key in self.lines:
                self.lines[key] = self.lines.pop(key)
                continue
            self.moved += not made
            self.lines[key] = made
            if len(self.lines) > self.size:
                self.moved += self.lines.popitem(last=False)[1]

    def free(self, value: int) -> None:
        """Its memory is the next value's, which nobody reads before it is written."""
        self.lines = OrderedDict((key, dirty) for key, dirty in self.lines.items() if key[0] != value)


def test_chains_move_what_a_simulated_cache_moves() -> None:
    rng = random.Random(0)
    for _ in range(50):
        size = rng.randint(10, 40)
        # Two neighbours fit the cache, or neither does: between the two it depends on how an operator walks over them.
        sizes = [rng.choice([rng.randint(1, size // 2), rng.randint(size + 1, 3 * size)]) for _ in range(8)]
        cache = Lru(size)
        for i in range(len(sizes) - 1):
            cache.touch(i, sizes[i], made=False)
            cache.touch(i + 1, sizes[i + 1], made=True)
            if sizes[i] <= size:
                cache.free(i)
        found = Traffic(chain(sizes)).of([[f"n{i}" for i in range(len(sizes) - 1)]], {}, 1, size)
        left = sum(cache.lines.values())
        assert abs(found - cache.moved - left) <= 0.3 * found, (sizes, size)


# ---- Operations, and what a call costs


class Narrow(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x


class Pointwise(nn.Module):
    """Moves bytes, and computes no product."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def operations(captured: CapturedGraph) -> int:
    symbols = analyze_memory(captured).symbols
    return sum(Evaluator(list(flops_by_node(captured, symbols).values()))(symbols.bind()))


def exported(model: nn.Module, x: Tensor) -> CapturedGraph:
    return capture(model.eval(), (x,), ({0: torch.export.Dim("batch", min=2)},))


def test_operations_are_those_of_products_and_no_guard_is_added() -> None:
    captured = exported(Narrow(), torch.randn(64, 32))
    assert operations(captured) == 4 * 2 * 64 * 32 * 32
    with torch.no_grad():
        assert operations(exported(Attention(), torch.randn(4, 2, 8, 16))) == 2 * 2 * 4 * 2 * 8 * 8 * 16
    convolution = exported(nn.Conv2d(3, 5, 3, padding=1), torch.randn(4, 3, 8, 8))
    assert operations(convolution) == 2 * 4 * 5 * 8 * 8 * 3 * 9


def cost_of(
    batch: int, model: nn.Module | None = None, *, width: int = 32, fewest: int = 2
) -> tuple[Cost, CapturedGraph, GraphMemory, str]:
    captured = exported(model or Narrow(width), torch.randn(batch, width))
    memory = analyze_memory(captured)
    (symbol,) = memory.symbols.hints
    return Cost(captured, memory, (symbol.name,), batch, fewest), captured, memory, symbol.name


def test_more_rows_cost_more_and_share_the_overhead_of_a_call() -> None:
    rows = 1 << 12
    whole = cost_of(rows)[0].whole(1 << 40)
    assert 0 < whole < cost_of(2 * rows)[0].whole(1 << 40) < 2 * whole


def test_operations_cost_time() -> None:
    rows = 1 << 12
    # Values of the same bytes, with twice the operations on them.
    assert cost_of(rows // 2, width=64)[0].whole(1 << 40) > 1.5 * cost_of(rows)[0].whole(1 << 40)


def test_bytes_cost_time() -> None:
    small, large = (cost_of(rows, Pointwise())[0].whole(1 << 40) for rows in (1 << 15, 1 << 16))
    assert large > 1.5 * small


def test_a_smaller_cache_never_helps() -> None:
    for model in (Narrow(), Pointwise()):
        cost = cost_of(1 << 12, model)[0]
        assert cost.whole(1 << 10) >= cost.whole(1 << 20) >= cost.whole(1 << 40)


def test_large_results_cost_fresh_memory() -> None:
    small, large = (cost_of(batch)[0].whole(1 << 40) for batch in (1 << 17, 1 << 18))  # values of 16 and of 32 MiB
    assert large > 2.5 * small


def test_microbatches_pay_for_their_calls_and_for_kernels_that_the_trace_does_not_have() -> None:
    batch = 1 << 18
    cost, captured, memory, symbol = cost_of(batch)
    request = Request.check("64MiB", 1)
    few, many = (
        cost.of(make_plan(captured, memory, replace(request, bind={symbol: rows})), rows) for rows in (1 << 6, 1 << 16)
    )
    assert few > many + ((batch >> 6) - (batch >> 16)) * 1e-6  # no call from Python takes less than a microsecond
    assert many < cost.whole(64 * MIB)
    plan = make_plan(captured, memory, replace(request, bind={symbol: 1 << 16}))
    assert cost_of(batch, fewest=(1 << 16) + 1)[0].of(plan, 1 << 16) > cost.of(plan, 1 << 16)


def test_a_partition_more_has_to_gain_more() -> None:
    cost, captured, memory, symbol = cost_of(1 << 18)
    one, four = (
        make_plan(captured, memory, replace(Request.check(None, count), bind={symbol: 1 << 16})) for count in (1, 4)
    )
    assert (one.num_partitions, four.num_partitions) == (1, 4)
    assert cost.of(four, 1 << 16) > cost.of(one, 1 << 16)


def test_microbatches_are_chosen_for_large_results_and_not_for_small_ones() -> None:
    for batch, cut in ((1 << 20, True), (1 << 12, False)):
        captured = exported(Narrow(), torch.randn(batch, 32))
        memory = analyze_memory(captured)
        (symbol,) = memory.symbols.hints
        found = plan_microbatches(captured, memory, Request.check("1MiB", None), (symbol.name,), None)
        assert (found is not None) is cut
        if found:
            plan, rows = found
            assert plan.num_partitions == 1 and plan.bindings[symbol.name] == rows < 1 << 18
        asked = plan_microbatches(captured, memory, Request.check("1MiB", None), (symbol.name,), 4)
        assert asked is not None and asked[1] == batch // 4
