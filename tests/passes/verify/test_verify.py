"""Plans of real models hold up before the checker, whatever was asked for."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
from zoo.captured import captured_family

from fx_partition import Plan
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.verify.check import find_faults

QUICK = ["mlp", "gpt2", "resnet18", "unet", "bert"]
SLOW = ["mixtral", "t5"]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_plans_of_models_hold(name: str) -> None:
    captured, memory = captured_family(name)
    whole = make_plan(captured, memory, Request.check(sys.maxsize)).max_bytes
    requests: list[tuple[Any, dict[str, Any]]] = [
        (whole // 3, {}),
        (whole // 3, {"objective": "traffic"}),
        (whole // 3, {"algorithm": "greedy"}),
        (whole // 8, {"devices": 2}),
        (whole // 2, {"devices": 5, "replicate": True}),
        (None, {"devices": 3}),
        ([whole // 4, whole // 2, whole // 3, whole], {}),
        ([whole // 9, whole // 7], {"on_shortage": "wrap"}),
    ]
    for budget, options in requests:
        plan = make_plan(captured, memory, Request.check(budget, **options))
        assert find_faults(captured, plan) == [], (budget, options)


def plan_of_mlp() -> tuple[CapturedGraph, Plan]:
    captured, memory = captured_family("mlp")
    whole = make_plan(captured, memory, Request.check(sys.maxsize)).max_bytes
    return captured, make_plan(captured, memory, Request.check(whole // 3))


def test_what_is_wrong_with_a_plan_is_named() -> None:
    captured, plan = plan_of_mlp()
    first, second, *rest = plan.partitions

    def reasons(*partitions: Any, **changes: Any) -> list[str]:
        return list(map(str, find_faults(captured, dataclasses.replace(plan, partitions=partitions, **changes))))

    moved = second.nodes[:1]
    grown = dataclasses.replace(first, nodes=first.nodes + moved)
    shrunk = dataclasses.replace(second, nodes=second.nodes[1:])
    assert any("partitions[0].total_bytes: it is" in reason for reason in reasons(grown, shrunk, *rest))
    assert reasons(grown, second, *rest) == [
        f"partitions[1].nodes: {moved[0]} is in partition 0 and again in partition 1"
    ]
    turned = (dataclasses.replace(first, nodes=second.nodes), dataclasses.replace(second, nodes=first.nodes))
    assert "which must run first" in reasons(*turned, *rest)[0]
    proof = dataclasses.replace(plan.certificate, min_partitions=plan.num_partitions - 1)
    assert any("certificate.min_partitions: it is" in reason for reason in reasons(*plan.partitions, certificate=proof))
    assert reasons(*plan.partitions, graph="other")[0].startswith("graph: the plan was made for another graph")


def test_another_order_needs_fewer_partitions_for_a_mixture_of_experts() -> None:
    captured, memory = captured_family("mixtral")
    whole = make_plan(captured, memory, Request.check(sys.maxsize)).max_bytes
    budget = int(whole / 4.3)
    found, traced = (make_plan(captured, memory, Request.check(budget, order=order)) for order in ("search", "trace"))
    assert found.num_partitions < traced.num_partitions and found.certificate.orders_tried > 1
    assert traced.certificate.orders_tried == 1 and not traced.certificate.exhaustive
    place = {step.node: t for t, step in enumerate(memory.steps)}
    assert all(list(p.nodes) == sorted(p.nodes, key=place.__getitem__) for p in found.partitions)
    own = (found.num_partitions, found.regular_max_bytes, found.cut_bytes)
    assert found.tradeoffs[0] == own
    # Too few devices for either: what is needed is what the order found needs, and no order is ruled out.
    short, other = (
        make_plan(captured, memory, Request.check(budget, devices=found.num_partitions - 1, order=order))
        for order in ("search", "trace")
    )
    assert short.certificate.min_partitions <= found.num_partitions < other.certificate.min_partitions
    assert short.max_bytes <= other.max_bytes and not short.certificate.exhaustive
    assert find_faults(captured, short) == []
    # Enough for the order found and not for that of the trace.
    enough = make_plan(captured, memory, Request.check(budget, devices=found.num_partitions, on_shortage="error"))
    assert enough.num_partitions == found.num_partitions
