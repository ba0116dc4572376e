"""Plans from untrusted files are read back equal, or refused with the name of the field."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition import PartitionError, Plan
from fx_partition.passes.plan import request
from fx_partition.passes.plan.json_form import _validator

WIDTH = 8
X = torch.randn(4, WIDTH)


class Towers(nn.Module):
    """Two towers that take turns, and a buffer that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("calls", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x + 1, x * 2
        for _ in range(3):
            a, b = torch.relu(self.left(a)), torch.tanh(self.right(b))
        self.calls.add_(1)
        return a + b + self.calls


def layers() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))


BATCH = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
MADE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Any, dict[str, Any]]] = {
    "dynamic": (layers, BATCH, 700, {}),
    "uneven": (layers, {}, [700, 500, 400], {"on_shortage": "wrap"}),
    "replicas": (layers, {}, 700, {"devices": 6, "replicate": True}),
    "named": (layers, BATCH, 700, {"devices": ["cuda:0", "cuda:1"]}),
    "sliced": (layers, {}, 400, {"oversize": "slice"}),
    "reordered": (Towers, {}, 900, {"keep_together": [["relu", "tanh"], "left"], "max_slack": math.inf}),
    "fused": (Towers, {}, 900, {"footprint": "fused"}),
    "by time": (layers, {}, "EdgeTPU", {"devices": 2, "objective": "throughput"}),
}


@cache
def made(name: str) -> tuple[torch.export.ExportedProgram, Plan]:
    build, export, budget, options = MADE[name]
    torch.manual_seed(0)
    program = torch.export.export(build().eval(), (X,), **export)
    return program, fx_partition.plan(program, cache_bytes=budget, **options)


def data_of(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(made(name)[1].to_json())
    return data


def changed(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy with another value at a path; `GONE` removes it."""
    result = copy.deepcopy(data)
    here = result
    for key in path[:-1]:
        here = here[key]
    if value is GONE:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return result


def paths(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in JSON data, leaves and containers."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


def deep(levels: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(levels):
        result = [result]
    return result


GONE = object()
NASTY = [
    GONE, None, True, -1, 0, 1, 7, 2**62, 2**63, 10**40, 1.5, 1e308, "", "x", "9**9**9", "s0", "-1", "1/0", "\x1b[2J",
    "\ud800", [], {}, [[]], deep(30), {"a": 1}, [None], ["x"], [1],
]  # fmt: skip


def use(plan: Plan, program: torch.export.ExportedProgram) -> None:
    """Call everything that reads a plan and does not compile it."""
    for format in ("text", "markdown", "json"):
        fx_partition.report(plan, format)
    assert Plan.from_json(plan.to_json()) == plan
    plan.fits(), plan.numbers(), plan.with_devices(("a", "b")), plan.num_distinct, plan.regular_max_bytes
    for dim in plan.symbols.dims:
        plan.largest(dim)
    with contextlib.suppress(PartitionError):  # it may be a plan that cannot run this graph
        fx_partition.simulate(program, plan=plan, device="H100-SXM")
    with contextlib.suppress(PartitionError):
        fx_partition.split(program, plan=plan)


@pytest.mark.parametrize("name", MADE)
def test_a_plan_reads_back_as_it_was_written(name: str) -> None:
    program, plan = made(name)
    for indent in (None, 1):
        assert Plan.from_json(plan.to_json(indent)) == plan
    use(plan, program)


QUICK = ("dynamic", "uneven", "reordered")


@pytest.mark.parametrize(
    ("name", "values"), [*((name, 1) for name in QUICK), *(pytest.param(n, 8, marks=pytest.mark.slow) for n in MADE)]
)
def test_whatever_one_value_is_changed_to_the_plan_is_refused_or_can_be_used(name: str, values: int) -> None:
    program, _ = made(name)
    data, draw = data_of(name), random.Random(name)
    read = 0
    for path in paths(data):
        for value in draw.sample(NASTY, values):
            text = json.dumps(changed(data, path, value))
            try:
                plan = Plan.from_json(text)
            except PartitionError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000
                continue
            read += 1
            if read % 4 == 0:
                use(plan, program)
    assert read


def first(data: dict[str, Any]) -> dict[str, Any]:
    partition: dict[str, Any] = data["partitions"][0]
    return partition


EDITS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("dynamic", lambda d: first(d)["symbolic"].update(weight="9**9**9"), r"s\[0\]\.symbolic\.weight: .*not a size"),
    ("dynamic", lambda d: first(d)["symbolic"]["moments"][0].__setitem__(1, "-8"), r"ts\[0\]\[1\]: its value .* is -8"),
    ("dynamic", lambda d: first(d)["symbolic"].update(state="1/(2 - s0)"), r"partitions\[0\]\.symbolic\.state: "),
    ("dynamic", lambda d: first(d)["symbolic"].update(moments=[]), r"symbolic\.moments: it has 0 entries"),
    ("dynamic", lambda d: first(d).pop("nodes"), r"partitions\[0\]: it has no 'nodes'"),
    ("dynamic", lambda d: first(d).update(nodes="linear"), r'partitions\[0\]\.nodes: "linear" is not a list'),
    ("dynamic", lambda d: first(d).update(nodes=[1]), r"partitions\[0\]\.nodes\[0\]: 1 is not a string"),
    ("dynamic", lambda d: first(d).update(index=1), r"partitions\[0\]\.index: it is 1 and must be 0"),
    ("dynamic", lambda d: first(d).update(slot=3), r"partitions\[0\]\.slot: it is 3 and must be 0"),
    ("dynamic", lambda d: first(d).update(weight_bytes=1.0), r"weight_bytes: 1\.0 is not a whole number"),
    ("dynamic", lambda d: first(d).update(weight_bytes=True), r"weight_bytes: true is not a whole number"),
    ("dynamic", lambda d: first(d).update(weight_bytes=-1), r"weight_bytes: -1 is less than 0"),
    ("dynamic", lambda d: first(d).update(weight_bytes=2**63), r"weight_bytes: 9223372036854775808 is more than"),
    ("dynamic", lambda d: first(d).update(wieght=0), r'partitions\[0\]: plans have no "wieght" there'),
    ("dynamic", lambda d: first(d).update(peak_node="nothing"), r'peak_node: "nothing" is not a node of the partition'),
    ("dynamic", lambda d: first(d).update(device="cuda:0"), r'device: it is "cuda:0", .* devices names none'),
    ("dynamic", lambda d: first(d).update(replicas=[9]), r"partitions\[0\]\.replicas"),
    ("dynamic", lambda d: first(d).update(code=1), r"partitions\[0\]\.code"),
    ("dynamic", lambda d: d["partitions"][1]["nodes"].append("linear"), r'nodes: "linear" is in partitions\[0\] too'),
    ("dynamic", lambda d: d["bindings"].update(s999=1), r"bindings\.s999: no symbol has this name"),
    ("dynamic", lambda d: next(iter(d["symbols"].values()))["assumptions"].update(nonnegative=False), "contradict"),
    ("dynamic", lambda d: d["symbols"].update({"import os": {}}), r"symbols: .*does not match"),
    ("dynamic", lambda d: d["certificate"]["witnesses"][0].__setitem__(0, "x"), r'witnesses\[0\]: "x" is not a node'),
    ("dynamic", lambda d: d.update(objective="magic"), "objective: .* is not one of balanced, traffic"),
    ("dynamic", lambda d: d.update(version=2), "version: it is 2, and this release reads 1"),
    ("dynamic", lambda d: d.update(version="1"), 'version: it is "1", and'),
    ("dynamic", lambda d: d.update(note="\x1b[2J"), "cannot be printed"),
    ("dynamic", lambda d: d.update(note="\ud800"), "cannot be printed"),
    ("uneven", lambda d: d["device_budgets"].pop(), "device_budgets: they are 2, and num_devices is 3"),
    ("uneven", lambda d: d["partitions"][1].update(slot=0), r"partitions\[1\]\.slot: 0 does not follow partitions\[0"),
    ("uneven", lambda d: d["partitions"][1].update(slot=2**40), r"partitions\[1\]\.slot: \d+ does not follow"),
    ("replicas", lambda d: first(d).update(replicas=[0]), r"replicas: they are not other devices; num_devices is 6"),
    ("replicas", lambda d: d.update(num_devices=10**9), "num_devices: 1000000000 is more than"),
    ("reordered", lambda d: d["oversize"][0].update(nodes=[]), r"oversize\[0\]\.nodes: it has 0 entries"),
    ("sliced", lambda d: d["slicings"][0].update(axis="rows"), r"slicings\[0\]\.axis: .* not one of outputs, inputs"),
]


@pytest.mark.parametrize(("name", "edit", "words"), EDITS)
def test_an_error_names_the_field(name: str, edit: Callable[[dict[str, Any]], Any], words: str) -> None:
    data = data_of(name)
    edit(data)
    with pytest.raises(PartitionError, match=words):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "it has no version"),
        ("null", "it has no version"),
        ('{"version": 9}', "version: it is 9, and this release reads 1"),
        ('{"version": 1}', "it has no 'graph'"),
        ('{"version": 1, "version": 1}', 'the key "version" twice'),
        ('{"version": NaN}', "NaN is not a number"),
        ('{"version": -Infinity}', "Infinity is not a number"),
        ('{"version": 1e999}', "too large"),
        ('{"version": ' + "9" * 100_000 + "}", "version: it is 9999"),
        ("[" * 100_000, "nested too deeply"),
        ('{"version": 1, "graph": ' + "[" * 900 + "]" * 900 + "}", "."),
        ("\ufeff{}", "not JSON"),
        ('{"version": 1, "graph": "\x00"}', "not JSON"),
    ],
    ids=range(15),
)
def test_text_that_is_not_a_plan(text: str, words: str) -> None:
    with pytest.raises(PartitionError, match=words):
        Plan.from_json(text)


@pytest.mark.parametrize("value", [None, 1, b"{}", {"version": 1}, ["x"]])
def test_what_is_not_text(value: Any) -> None:
    with pytest.raises(PartitionError, match=f"it is {type(value).__name__} and not text"):
        Plan.from_json(value)


def test_the_schema_names_the_choices_that_there_are() -> None:
    properties = _validator().schema["properties"]
    choices = {"algorithm": request.ALGORITHMS, "objective": request.OBJECTIVES, "footprint": request.FOOTPRINTS}
    for name, known in choices.items():
        assert properties[name]["enum"] == list(known)
    assert properties["num_devices"]["maximum"] == request.MOST_DEVICES


def test_an_honest_empty_plan_can_be_used() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    program = torch.export.export(Nothing(), (X,))
    plan = Plan.from_json(fx_partition.plan(program, cache_bytes="1KiB").to_json())
    assert plan.num_partitions == 0
    use(plan, program)
    found = fx_partition.simulate(program, plan=plan, device="H100-SXM")
    assert (found.throughput, found.latency, found.offchip_bytes, found.stages) == (math.inf, 0.0, 0.0, ())
    assert "any number of runs a second" in found.report() and json.loads(found.report("json"))["throughput"] is None


def test_a_plan_of_values_without_bytes_can_be_used() -> None:
    class Relu(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    program = torch.export.export(Relu(), (torch.randn(0, 4),))
    plan = Plan.from_json(fx_partition.plan(program, devices=1).to_json())
    use(plan, program)
    found = fx_partition.simulate(program, plan=plan, device="H100-SXM")
    assert found.offchip_bytes == 0 and found.stages[0].bound == "launch"
