"""The fastest boundaries against all boundaries, by the same times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest
import torch
from chains import Brute, chains, separate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import FAMILIES

import fx_partition
from fx_partition import PartitionError
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.contraction import contract
from fx_partition.passes.partitioner.greedy import FarthestReachSolver
from fx_partition.passes.timing import time_dp as module
from fx_partition.passes.timing.partition_work import Access, AccessKind, PartitionWork
from fx_partition.passes.timing.roofline import Roofline
from fx_partition.passes.timing.time_dp import fastest

NONE = 10**15


def work(flops: int, touched: int, kernels: int = 1, launches: int = 1) -> PartitionWork:
    return PartitionWork((Access(("weight", 0), touched, AccessKind.READ),), frozenset(), flops, kernels, launches)


def device(usable: float, **options: float) -> Roofline:
    """Ten bytes a second from a memory of `usable` bytes, one from behind it; of twice as many it holds half."""
    return Roofline("test", 4.0, 10.0, 1.0, lambda size: min(1.0, usable / size if size else 1.0), **options)


def times(
    brute: Brute, works: list[PartitionWork], speed: Roofline, boundaries: tuple[int, ...]
) -> tuple[float, float]:
    """The longest run or hop, and the sum of all, straight from the definition."""
    runs, hops = [], [0.0]
    for first, end in pairwise(boundaries):
        own = works[first:end]
        flops, touched = sum(w.flops for w in own), sum(w.bytes for w in own)
        kernels, launches = sum(w.kernels for w in own), sum(w.launches for w in own)
        runs.append(speed.run(flops, touched, kernels, launches, brute.footprint[first, end]))
        if first:
            hops.append(speed.hop(brute.received[first, end]))
    return max(*runs, *hops), sum(runs) + sum(hops)


def plans(n: int, most: int) -> Iterator[tuple[int, ...]]:
    for k in range(1, most + 1):
        yield from ((0, *inner, n) for inner in combinations(range(1, n), k - 1))


@settings(max_examples=300, deadline=None)
@given(chains(max_atoms=7), st.data())
def test_no_plan_is_faster(chain: Chain, data: st.DataObject) -> None:
    brute, n = Brute(chain), chain.num_atoms
    works = [
        work(*data.draw(st.tuples(*(st.integers(0, most) for most in (50, 60, 2, 4))))) for _ in range(n)
    ]
    speed = device(
        data.draw(st.sampled_from([3.0, 20.0, 200.0])), call=data.draw(st.sampled_from([0.0, 1.0])),
        kernel=0.5, launch=data.draw(st.sampled_from([0.0, 4.0])),
        latency=data.draw(st.sampled_from([0.0, 2.0])), bandwidth=data.draw(st.sampled_from([1.0, 7.0])),
    )  # fmt: skip
    limit = data.draw(st.sampled_from([NONE, *sorted(brute.footprint.values())]))
    most = len(FarthestReachSolver(contract(chain)).run(limit).footprints) + data.draw(st.integers(0, 3))

    def feasible(boundaries: tuple[int, ...]) -> bool:
        return all(b - a == 1 or brute.footprint[a, b] <= limit for a, b in pairwise(boundaries))

    found = {
        boundaries: times(brute, works, speed, boundaries) for boundaries in plans(n, most) if feasible(boundaries)
    }
    for objective, which in (("throughput", 0), ("latency", 1)):
        best = fastest(contract(chain), works, speed, objective, most, limit)
        assert best is not None
        own = times(brute, works, speed, tuple(best.boundaries))
        least = min(measures[which] for measures in found.values())
        assert tuple(best.boundaries) in found
        assert math.isclose(own[which], least, rel_tol=2e-6) and math.isclose(best.seconds, own[which], rel_tol=1e-9)
        if objective == "throughput":  # and of those none has a smaller latency
            assert own[1] <= min(late for slow, late in found.values() if slow <= own[0]) * (1 + 1e-9)


def test_the_example_of_the_docstring() -> None:
    chain = separate(1, 1, 1)
    speed = Roofline("test", 1.0, 1.0, 1.0, lambda size: 1.0, latency=0.5)
    works = [work(seconds, 0) for seconds in (2, 2, 3)]
    assert fastest(contract(chain), works, speed, "throughput", 2, NONE) == module.Fastest([0, 2, 3], 4.0)
    assert fastest(contract(chain), works, speed, "latency", 2, NONE) == module.Fastest([0, 3], 7.0)


def test_where_places_are_thinned_out_the_throughput_stays_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = separate(*([3, 1, 2] * 20))
    works = [work(0, size) for size in [3, 1, 2] * 20]
    speed = device(15.0, latency=0.01)
    whole = {goal: fastest(contract(chain), works, speed, goal, 9, NONE) for goal in ("throughput", "latency")}
    monkeypatch.setattr(module, "MOST_RUNS", 600)
    thin = {goal: fastest(contract(chain), works, speed, goal, 9, NONE) for goal in ("throughput", "latency")}
    assert thin["throughput"].seconds == whole["throughput"].seconds
    assert whole["latency"].seconds <= thin["latency"].seconds < 1.5 * whole["latency"].seconds


def bottleneck(widths: list[int]) -> nn.Sequential:
    """Layers that read as many bytes a row as they compute; wide ones late."""
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def test_throughput_balances_time_and_not_bytes() -> None:
    # Convolutions compute much with few weights, linear layers read many and compute little.
    convolutions = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(6)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 16 * 16, 64), nn.Linear(64, 64)).eval()
    x = torch.zeros(8, 32, 16, 16)
    options = {"example_inputs": x, "devices": 3, "order": "trace"}
    by_time = fx_partition.plan(model, cache_bytes="V100", objective="throughput", **options)
    by_bytes = fx_partition.plan(model, x, devices=3, order="trace")
    rates = [
        fx_partition.simulate(model, x, plan=plan, device="V100").throughput for plan in (by_time, by_bytes)
    ]
    assert by_time.num_partitions == 3 and rates[0] > 1.2 * rates[1]
    assert "slowest partition or hop" in by_time.note and "V100" in by_time.note


@pytest.mark.parametrize(("name", "least"), [("gpt2", 1.0), ("resnet18", 1.5)])
@pytest.mark.parametrize("device", ["H100-SXM", "EdgeTPU"])
def test_plans_of_a_time_objective_simulate_faster_than_those_by_bytes(name: str, least: float, device: str) -> None:
    """It follows each tensor by itself, and shares no code with the planner's estimate but what a step touches."""
    family = FAMILIES[name]
    args, kwargs = family.inputs(4)
    program = torch.export.export(family.build().eval(), args, kwargs, strict=False)
    rates = [
        fx_partition.simulate(program, plan=plan, device=device).throughput
        for plan in (
            fx_partition.plan(program, cache_bytes=device, devices=4, objective="throughput"),
            fx_partition.plan(program, devices=4, order="trace"),
        )
    ]
    assert rates[0] >= least * rates[1]


def test_latency_takes_no_more_hops_than_pay() -> None:
    model, x = bottleneck([512] * 9), torch.zeros(1, 512)
    plan = fx_partition.plan(model, x, cache_bytes="EdgeTPU", objective="latency", devices=4)
    assert plan.num_partitions == 2  # 8 MiB of weights do not fit one
    assert fx_partition.plan(model, x, cache_bytes="H100-SXM", objective="latency", devices=4).num_partitions == 1


def test_with_too_few_devices_spilling_is_weighed_by_its_time() -> None:
    model, x = bottleneck([1024] * 9), torch.zeros(1, 1024)
    plan = fx_partition.plan(model, x, cache_bytes="EdgeTPU", objective="throughput", devices=2)
    assert plan.num_partitions == 2 and plan.spill_bytes
    with pytest.raises(PartitionError, match="there are 2 devices"):
        fx_partition.plan(
            model, x, cache_bytes="EdgeTPU", objective="throughput", devices=2, on_shortage="error"
        )


@pytest.mark.parametrize(
    ("cache_bytes", "options", "said"),
    [
        ("6MiB", {}, "needs to know how fast a device is"),
        (["EdgeTPU", "H100"], {}, "needs to know how fast a device is"),
        (None, {"devices": 2}, "needs to know how fast a device is"),
        ("EdgeTPU", {"footprint": "fused"}, "leave footprint= out"),
        ("EdgeTPU", {"max_slack": 0.1}, "leave max_slack= out"),
        ("EdgeTPU", {"on_shortage": "wrap", "devices": 1}, "one partition on each device"),
        ("EdgeTPU", {"algorithm": "greedy"}, "follows no objective"),
        ("EgdeTPU", {}, "EdgeTPU"),
    ],
)
def test_what_time_does_not_go_with_is_refused(cache_bytes: object, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fx_partition.plan(nn.Linear(2, 2), torch.ones(1, 2), cache_bytes=cache_bytes, objective="latency", **options)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_a_graph_without_operators_takes_no_time(objective: str) -> None:
    plan = fx_partition.plan(nn.Identity(), torch.ones(2), cache_bytes="H100", objective=objective)
    assert plan.num_partitions == 0 and " 0 us " in plan.note


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_a_device_without_memory_must_hold_its_partition(objective: str) -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(*(nn.Linear(5000, 5000, bias=False) for _ in range(4))), torch.ones(1, 5000)
    with pytest.raises(PartitionError, match=r"GroqLPU1 has no memory behind.*name more devices"):
        fx_partition.plan(model, x, cache_bytes="GroqLPU1", objective=objective, devices=1)
    assert fx_partition.plan(model, x, cache_bytes="GroqLPU1", objective=objective).spill_bytes == 0


def test_reports_say_that_time_placed_the_boundaries() -> None:
    model, x = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))), torch.zeros(8, 16, 32, 32)
    plan = fx_partition.plan(model, x, cache_bytes="V100", objective="throughput", devices=2)
    assert plan.certificate.min_partitions == 1 and plan.num_partitions == 2
    text = fx_partition.report(plan)
    assert text.startswith("Uses 2 devices") and "They were placed by time" in text
    assert "There may be one" not in text and plan == type(plan).from_json(plan.to_json())
