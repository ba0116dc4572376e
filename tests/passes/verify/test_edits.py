"""Every leaf of a plan's JSON is changed in turn: each edit is refused by name, or is shown to say nothing wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from edits import Edit, edits
from models import SUBJECTS, Subject, subject

import fx_partition
from fx_partition import PartitionError, Plan
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.verify import check

#: Fields that say nothing that the model could contradict, by a pattern of their path, and why.
NO_MEANING = {
    r"note": "words for a reader, such as why a backend leaves the batch whole",
    r"oversize\[\d+\]\.why_whole": "words for a reader: why an operator was not sliced",
    r"partitions\[\d+\]\.allocated_bytes": "what a compiled run allocated; a plan says null, and nothing reads it",
    r"partitions\[\d+\]\.code": "whose code a compiled partition shares; a plan says null, and nothing reads it",
    r"symbols\.\w+\.hint": "the size when the graph was traced: another trace has another, and bindings counts",
}
#: Edits that take a claim back: what is left is true, and less than was known.
LESS = {
    ("certificate.exhaustive", False): "the plan says no longer that no other order is better",
    ("certificate.fewest_over_all_orders", 0): "the plan says no longer that no other order has fewer partitions",
}
#: Whether it follows other graphs, which the model does not show: a plan of which nothing is proved loses nothing.
FOLLOWS = "follows_weights"
#: How long a search looked; nothing is said to follow from it, unless it says that it was exhaustive.
HOW_LONG = "certificate.orders_tried"
#: Another moment may show the same number of partitions; the checker counts what each shows.
MOMENT = "certificate.moment"
#: Other atoms may show the same number of partitions, with fewer or more of them before and behind; likewise.
ENDS = ("certificate.partitions_before", "certificate.partitions_behind")
#: What a caller asks for. An edit of these is right if the planner, asked so, writes the very same plan.
ASKED = ("algorithm", "objective", "max_slack", "budget_is_smallest", "device_budgets", "num_devices", "devices",
         "memory", "boundaries", "keep_together", "certificate.exhaustive", "certificate.orders_tried")  # fmt: skip
#: Its edits take longest; the orders of "towers" are searched too.
LONG = ("experts",)
DERIVED = ("num_partitions", "max_bytes", "cut_bytes")


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Callable[[Subject, dict[str, Any]], list[str]]:
    """Verify edits of one plan; its graph is read once for all of them, which does not depend on the plan."""
    read = check.read_graph
    known: dict[int, Any] = {}
    monkeypatch.setattr(check, "read_graph", lambda captured: known.get(id(captured)) or read(captured))
    captured: dict[int, CapturedGraph] = {}

    def reasons(its: Subject, data: dict[str, Any]) -> list[str]:
        if id(its) not in captured:
            captured[id(its)] = found = capture(its.program)
            known[id(found)] = read(found)
        try:
            plan = Plan.from_json(json.dumps(data))
        except PartitionError as error:
            return [str(error)]
        return [str(fault) for fault in check.find_faults(captured[id(its)], plan)]

    return reasons


def without_derived(data: dict[str, Any]) -> dict[str, Any]:
    """The plan without what only repeats other fields, so that what is edited is not contradicted by that alone."""
    found = json.loads(json.dumps(data))
    for name in DERIVED:
        del found[name]
    for partition in found["partitions"]:
        for name in ("activation", "workspace", "total"):
            del partition["symbolic"][name]
    return found


def is_named(edit: Edit, reason: str) -> bool:
    """Whether a reason has the path of the leaf, or of the list or the row that it is in, or names the node."""
    outer = [edit.path]
    while (shorter := outer[-1].rpartition("[")[0]) and outer[-1].endswith("]"):
        outer.append(shorter)
    if ".assumptions." in edit.path:
        outer.append(edit.path.rpartition(".")[0])
    if edit.path in reason or any(f"{path}:" in reason for path in outer):
        return True
    if re.search(r"(moments|witnesses)\[\d+\]\[", edit.path) and f"{outer[1]}[" in reason:  # another cell of its row
        return True
    return ".nodes[" in edit.path and any(re.search(rf"\b{name}\b", reason) for name in (edit.before, edit.after))


def says_nothing_wrong(edit: Edit) -> bool:
    """Whether an edit is of a field that the model cannot contradict, or takes back a part of what is known."""
    if any(re.fullmatch(pattern, edit.path) for pattern in NO_MEANING) or (edit.path, edit.after) in LESS:
        return True
    if (edit.path == MOMENT and edit.after) or edit.path in ENDS:
        return bool(edit.data["certificate"]["fewest_over_all_orders"])
    if edit.path == FOLLOWS:
        return bool(edit.data["footprint"] == "fused")
    return edit.path == HOW_LONG and not edit.data["certificate"]["exhaustive"] and edit.after > 1


def asked_so(its: Subject, data: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield the plans that the planner writes for what an edited plan says was asked."""
    _, _, options = SUBJECTS[name]
    keep = [group if isinstance(group, str) else tuple(group) for group in data["keep_together"]]
    devices: Any = data["devices"] or data["num_devices"] or None
    budget: Any = data["device_budgets"] or data["budget_bytes"]
    asked = {
        **options, "algorithm": data["algorithm"], "objective": data["objective"], "keep_together": keep,
        "max_slack": float("inf") if data["max_slack"] == "any" else data["max_slack"], "devices": devices,
        "memory": data["memory"], "boundaries": data["boundaries"],
    }  # fmt: skip
    ways = product(("search", "trace"), ("balance", "wrap"), (False, True))
    for order, on_shortage, replicate in ways:
        if replicate and not devices:
            continue
        way = {**asked, "order": order, "on_shortage": on_shortage, "replicate": replicate}
        try:
            plan = fx_partition.plan(its.program, cache_bytes=None if data["budget_is_smallest"] else budget, **way)
        except PartitionError:
            continue
        yield without_derived(json.loads(plan.to_json()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SUBJECTS]
)
def test_each_edit_is_refused_by_name_or_says_nothing_wrong(
    name: str, find: Callable[[Subject, dict[str, Any]], list[str]]
) -> None:
    its = subject(name)
    whole = json.loads(its.plan.to_json())
    assert find(its, whole) == []
    data = without_derived(whole)
    wrong: list[str] = []
    refused = 0
    for edit in edits(data):
        reasons = find(its, edit.data)
        if reasons:
            refused += 1
            if not any(is_named(edit, reason) for reason in reasons):
                wrong.append(f"{edit.path}: {edit.before} -> {edit.after} is refused as {reasons[0]}")
        elif not says_nothing_wrong(edit) and not (
            edit.path.startswith(ASKED) and edit.data in asked_so(its, edit.data, name)
        ):
            wrong.append(f"{edit.path}: {edit.before} -> {edit.after} is not refused")
    assert wrong == []
    assert refused > 100


@pytest.mark.parametrize("name", ["layers", "towers"])
def test_what_repeats_other_fields_must_repeat_them(
    name: str, find: Callable[[Subject, dict[str, Any]], list[str]]
) -> None:
    its = subject(name)
    data = json.loads(its.plan.to_json())
    for edit in edits(data):
        last = edit.path.rpartition(".")[2]
        if last in DERIVED or (".symbolic." in edit.path and last in ("activation", "workspace", "total")):
            assert any(f"{edit.path}: it is" in reason for reason in find(its, edit.data)), edit.path
