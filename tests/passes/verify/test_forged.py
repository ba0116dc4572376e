"""Plans that were edited consistently, so that no field contradicts another, are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from models import WIDTH, Subject, Towers, subject
from torch import nn

import fx_partition
from fx_partition import PartitionWarning, Plan, PlanMismatchError
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.verify.check import find_faults

X = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
#: What no plan can claim less of.
NOTHING = {"min_partitions": 1, "witnesses": (), "max_bytes_lower_bound": 0, "max_witnesses": ()}


def reasons(its: Subject, plan: Plan) -> list[str]:
    return fx_partition.verify(plan, its.program)


def test_the_last_layer_first_with_an_empty_proof() -> None:
    its = subject("layers")
    order = [name for partition in its.plan.partitions for name in partition.nodes][::-1]
    partitions = []
    for partition in its.plan.partitions:
        nodes, order = tuple(order[: len(partition.nodes)]), order[len(partition.nodes) :]
        partitions.append(replace(partition, nodes=nodes))
    forged = replace(
        its.plan, partitions=tuple(partitions), certificate=replace(its.plan.certificate, **NOTHING)
    )
    found = reasons(its, forged)
    assert found and all("which must run first" in reason for reason in found)
    with pytest.raises(PlanMismatchError, match="which must run first"):
        fx_partition.split(its.program, plan=forged)


def merged(its: Subject) -> Plan:
    """The plan with its partitions as one, whose figures are those of the model, and a proof to match."""
    whole = fx_partition.plan(its.program, cache_bytes="1GiB")
    assert whole.num_partitions == 1 and whole.max_bytes > its.plan.budget_bytes
    order = tuple(name for partition in its.plan.partitions for name in partition.nodes)
    one = replace(
        whole.partitions[0], nodes=order, budget_bytes=its.plan.budget_bytes,
        spill_bytes=whole.max_bytes - its.plan.budget_bytes,
    )  # fmt: skip
    return replace(its.plan, partitions=(one,), certificate=replace(its.plan.certificate, **NOTHING))


@pytest.mark.parametrize("name", ["layers", "towers"])
def test_partitions_merged_over_the_budget(name: str) -> None:
    its = subject(name)
    forged = merged(its)
    found = reasons(its, forged)
    assert any("certificate.min_partitions: it is 1" in reason for reason in found)
    assert not any(reason.startswith("partitions[0].total_bytes") for reason in found), "its figures are the model's"


@pytest.mark.parametrize("tried", [1, 2, 64, 66, 77, 4096, 2**62])
def test_a_search_that_says_that_it_was_exhaustive_is_counted(tried: int) -> None:
    its = subject("towers")
    assert its.plan.certificate.exhaustive and its.plan.certificate.orders_tried == 65
    forged = replace(its.plan, certificate=replace(its.plan.certificate, orders_tried=tried))
    assert any(reason.startswith("certificate.") for reason in reasons(its, forged))


def test_a_search_that_is_too_large_to_repeat_is_not_believed() -> None:
    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.sin(x + i) for i in range(30)]).sum(0)

    program = torch.export.export(Wide(), (X,))
    plan = fx_partition.plan(program, cache_bytes="6KiB")
    assert plan.num_partitions > 1 and fx_partition.verify(plan, program) == []
    for tried in (5000, 2**62):  # it has 3**30 downsets
        forged = replace(plan, certificate=replace(plan.certificate, orders_tried=tried, exhaustive=True))
        assert any("certificate.exhaustive is true" in reason for reason in fx_partition.verify(forged, program))


def test_all_orders_searched_and_a_better_one_missed() -> None:
    """The trace order's own plan, said to be the best of all: the number of downsets is right, and the claim is not."""
    its = subject("towers")
    traced = fx_partition.plan(its.program, cache_bytes=900, order="trace")
    assert traced.num_partitions > its.plan.num_partitions
    forged = replace(traced, certificate=replace(traced.certificate, orders_tried=65, exhaustive=True))
    assert reasons(its, forged) == [
        "certificate.exhaustive: another order has 2 partitions, at most 704 bytes and 128 received"
    ]


class Bottlenecks(nn.Module):
    """Layers whose outputs are wide, but for a narrow one that is a cheap place to cut."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [64, 64, 64, 8, 64, 64, 64, 64]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_boundaries_of_another_objective() -> None:
    program = torch.export.export(Bottlenecks(), (torch.zeros(4, 64),))
    traffic, balanced, greedy = (
        fx_partition.plan(program, cache_bytes="56KiB", order="trace", **options)
        for options in ({"objective": "traffic"}, {}, {"algorithm": "greedy"})
    )
    assert traffic.cut_bytes < balanced.cut_bytes and traffic.max_bytes > balanced.max_bytes
    assert [fx_partition.verify(plan, program) for plan in (traffic, balanced, greedy)] == [[], [], []]

    def forged(plan: Plan, **changes: Any) -> str:
        return "; ".join(fx_partition.verify(replace(plan, **changes), program))

    assert forged(balanced, objective="traffic").startswith(f"objective: {balanced.cut_bytes} bytes are received, and")
    assert forged(balanced, max_slack=5.0).startswith(f"max_slack: {balanced.cut_bytes} bytes are received, and")
    assert forged(traffic, objective="balanced").startswith("algorithm: the largest partition has")
    assert forged(balanced, algorithm="greedy").startswith("algorithm: greedy fills one partition after another")
    assert forged(greedy, algorithm="dp").startswith("algorithm: the largest partition has")


def test_a_plan_that_runs_and_does_not_hold_is_cut_with_a_warning() -> None:
    model = Towers()
    plan = fx_partition.plan(model, X, cache_bytes=900)
    first, *rest = plan.partitions
    forged = replace(plan, partitions=(replace(first, recv_bytes=first.recv_bytes + 4), *rest))
    with pytest.warns(PartitionWarning, match=r"partitions\[0\]\.recv_bytes: it is 4, .* the model has 0"):
        cut = fx_partition.split(model, X, plan=forged)
    assert torch.equal(cut(X), model(X))


def test_a_plan_of_another_graph_and_slicings_that_cannot_be_made() -> None:
    its = subject("layers")
    data: dict[str, Any] = json.loads(its.plan.to_json())
    data["graph"] = "0" * 16
    assert reasons(its, Plan.from_json(json.dumps(data)))[0].startswith("graph: the plan was made for another graph")
    data = json.loads(its.plan.to_json())
    data["slicings"] = [{"node": "relu", "axis": "outputs", "parts": 2}]
    assert reasons(its, Plan.from_json(json.dumps(data)))[0].startswith("slicings: relu cannot be sliced")


def test_a_binding_of_its_own_holds() -> None:
    its = subject("attention")
    plan = fx_partition.plan(its.program, cache_bytes=4000, bind={"x.0": 5, "x.1": 9})
    assert reasons(its, plan) == []
    forged = replace(plan, bindings={**plan.bindings, next(iter(plan.bindings)): 7})
    assert all("bindings." in reason or "symbolic" in reason for reason in reasons(its, forged)[:2])


def test_the_checker_imports_nothing_of_the_planner() -> None:
    import ast
    from pathlib import Path

    planner = {
        "partitioner.repeated_partitions", "constraints.atoms", "partitioner.certify", "partitioner.chain",
        "partitioner.contraction", "partitioner.min_cut", "plan.builder", "ordering.downsets", "partitioner.dp",
        "footprint.graph_memory", "timing.time_dp",
        "footprint.analyze", "partitioner.greedy", "constraints.handed_on_writes", "constraints.hoisting",
        "partitioner.build_chain", "partitioner.boundary_ranges", "plan.symbolic_peaks", "ordering.list_schedules",
        "partitioner.pareto",
        "plan.placement", "plan.make_plan", "plan.problem", "ordering.search", "plan.replication",
        "ordering.downset_footprint", "plan.fused_refinement", "footprint.shared_inputs", "footprint.state_inputs",
        "ordering.check_order_bound", "ordering.order_bound", "ordering.order_ends", "ordering.resplit",
        "ordering.rolling_beam", "ordering.beam", "ordering.annealing", "ordering.piece", "partitioner.cut_ties",
        "partitioner.mixed_devices", "footprint.weight_storage", "footprint.storage_refs", "footprint.free_scalars",
        "partitioner.sliding_window",
    }  # fmt: skip
    folder = Path(fx_partition.__file__).parent / "passes" / "verify"
    found = {}
    for path in folder.glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        found[path.name] = {str(node.module) for node in imports if node.level == 2} & planner
    assert {name: names for name, names in found.items() if names} == {
        "fused.py": {"footprint.graph_memory", "footprint.analyze"}
    }


def test_a_captured_graph_is_checked_as_the_model_is() -> None:
    its = subject("caches")
    assert find_faults(capture(its.program), its.plan) == []
