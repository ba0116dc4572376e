"""Reports agree with their plans."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition.common.units import format_bytes


@pytest.fixture(scope="module")
def plan() -> fx_partition.Plan:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    shapes = {"input": {0: torch.export.Dim("batch")}}
    return fx_partition.plan(model, torch.randn(4, 64), cache_bytes="40KiB", dynamic_shapes=shapes)


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_every_partition_has_a_row_with_its_figures(plan: fx_partition.Plan, form: str) -> None:
    lines = fx_partition.report(plan, form).splitlines()
    for partition in plan.partitions:
        cells = [str(partition.index), partition.first]
        (row,) = [line for line in lines if line.replace("|", " ").replace("`", "").split()[:2] == cells]
        for size in (partition.weight_bytes, partition.total_bytes, plan.budget_bytes - partition.total_bytes):
            assert format_bytes(size) in row
        assert f"{100 * partition.total_bytes / plan.budget_bytes:.1f}%" in row


def test_it_says_how_many_devices_and_why(plan: fx_partition.Plan) -> None:
    text = fx_partition.report(plan)
    assert text.startswith(f"Needs {plan.num_partitions} devices of 40 KiB")
    for witness in plan.certificate.witnesses:
        assert f"{witness.first} .. {witness.rejected} hold {format_bytes(witness.bytes)}" in text
    assert f"input.0: up to {plan.largest('input.0')}" in text
    assert all(partition.total_text in text for partition in plan.partitions)


def test_spill_and_oversize_are_said_plainly() -> None:
    spilling = fx_partition.plan(nn.Sequential(nn.Linear(64, 64)), torch.randn(4, 64), cache_bytes="10KiB")
    text = fx_partition.report(spilling)
    assert spilling.spill_bytes > 0
    assert f"{format_bytes(spilling.spill_bytes)}" in text and "streamed from off-chip" in text


def test_json_is_the_plan(plan: fx_partition.Plan) -> None:
    assert fx_partition.Plan.from_json(fx_partition.report(plan, "json")) == plan


def test_of_a_split_module_and_of_a_compiled_model() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).eval()
    x = torch.randn(4, 64)
    cut = fx_partition.split(model, x, cache_bytes="40KiB")
    assert fx_partition.report(cut) == fx_partition.report(cut.plan)
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "40KiB"})
    with pytest.raises(ValueError, match="call it once"):
        fx_partition.report(compiled)
    with torch.no_grad():
        compiled(x)
    assert fx_partition.report(compiled).startswith("Needs 2 devices of 40 KiB")


def test_an_unknown_format_names_those_there_are(plan: fx_partition.Plan) -> None:
    with pytest.raises(ValueError, match=r"text.*markdown.*json"):
        fx_partition.report(plan, "pdf")
