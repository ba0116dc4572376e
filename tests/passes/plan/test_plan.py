"""A plan as data: JSON, other bindings, devices."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition import Plan

WIDTH = 64
WEIGHT = 4 * (WIDTH * WIDTH + WIDTH)


def symbolic_plan(budget: int | str = "40KiB", **options: object) -> Plan:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(6)))
    batch = ({0: torch.export.Dim("batch")},)
    return fx_partition.plan(model, torch.zeros(4, WIDTH), cache_bytes=budget, dynamic_shapes=batch, **options)


def test_json_has_the_documented_keys_and_reads_back() -> None:
    plan = symbolic_plan()
    data = json.loads(plan.to_json())
    assert data["version"] == 1 and data["num_partitions"] == plan.num_partitions == len(data["partitions"])
    assert {"algorithm", "objective", "footprint", "budget_bytes", "bindings", "max_bytes", "cut_bytes",
            "certificate", "partitions", "oversize", "unknown_workspace"} <= data.keys()  # fmt: skip
    for entry in data["partitions"]:
        parts = ("weight_bytes", "state_bytes", "activation_bytes", "workspace_bytes")
        assert entry["total_bytes"] == sum(entry[name] for name in parts)
        assert {"weight", "activation", "workspace", "total"} <= entry["symbolic"].keys()
    assert data["max_bytes"] == max(entry["total_bytes"] for entry in data["partitions"])
    assert data["cut_bytes"] == sum(entry["recv_bytes"] for entry in data["partitions"])
    read = Plan.from_json(plan.to_json())
    assert read == plan and read.largest("input.0") == plan.largest("input.0")


def test_plans_are_equal_for_equal_requests_and_cannot_be_changed() -> None:
    assert symbolic_plan().to_json() == symbolic_plan().to_json()
    with pytest.raises(dataclasses.FrozenInstanceError):
        symbolic_plan().graph = "other"  # type: ignore[misc]


def test_largest_is_the_last_batch_that_fits() -> None:
    plan = symbolic_plan()
    largest = plan.largest("input.0")
    assert largest > 4
    assert plan.fits({"input.0": largest}) and not plan.fits({"input.0": largest + 1})
    assert symbolic_plan(bind={"input.0": largest}).num_partitions == plan.num_partitions
    # Two layers: their weights, and a layer's input and output
    assert largest == (40 * 1024 - 2 * WEIGHT) // (2 * 4 * WIDTH)


def test_largest_at_its_ends() -> None:
    assert symbolic_plan("8KiB").largest("input.0") == 0  # the weights alone exceed the budget
    assert symbolic_plan("1GiB").largest("input.0", limit=128) == 128
    with pytest.raises(ValueError, match="is not a symbol"):
        symbolic_plan().fits({"nothing.0": 1})


def test_footprints_under_another_binding_are_those_of_a_plan_made_for_it() -> None:
    plan, bound = symbolic_plan("1GiB"), symbolic_plan("1GiB", bind={"input.0": 50})
    numbers = plan.symbols.bind({"input.0": 50})
    assert plan.partitions[0].footprint(numbers) == bound.partitions[0].total_bytes > plan.partitions[0].total_bytes
    assert bound.bindings == {next(iter(plan.bindings)): 50}


def test_devices_in_turn_and_shortage() -> None:
    names = [p.device for p in symbolic_plan(devices=["a", "b"], on_shortage="wrap").partitions]
    assert names == ["a", "b", "a"]
    short = symbolic_plan(devices=["a", "b"])
    assert [p.device for p in short.partitions] == ["a", "b"] and short.spill_bytes > 0
    assert symbolic_plan(devices=["a", "b", "c", "d"]).num_partitions == 3
    assert [p.device for p in symbolic_plan().with_devices(("x", "y")).partitions] == ["x", "y", "x"]


def test_the_certificate_counts() -> None:
    proof = symbolic_plan().certificate
    assert proof.min_partitions == 3 == len(proof.witnesses) + 1
    assert all(w.bytes > 40 * 1024 for w in proof.witnesses)
    assert proof.max_bytes_lower_bound == symbolic_plan().max_bytes
