"""Plans that leave weights where an earlier graph has them, under every kind of request."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fx_partition.common.errors import PartitionWarning
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.plan.follow_weights import WeightPlaces
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import Request
from fx_partition.passes.split.extract import cut, planned_graph
from fx_partition.passes.verify.check import find_faults
from fx_partition.report import render

WIDTH, LAYERS = 32, 8
PAIR, THREE = ("cuda:0", "cuda:1"), ("cuda:0", "cuda:1", "cuda:2")
LAYER = (WIDTH * WIDTH + WIDTH) * 4


class Net(nn.Module):
    """Wide features of its rows first, then layers; the head may be the weights of the first layer."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = self.layers[0] if tied else nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.reshape(-1, 2) @ torch.ones(2, 32)).reshape(-1, WIDTH, 16).sin().mean(-1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


Graphs = tuple[CapturedGraph, CapturedGraph]


@pytest.fixture(scope="module")
def graphs() -> dict[bool, Graphs]:
    """Each model traced for many rows and for one."""
    found = {}
    for tied in (False, True):
        model = Net(tied=tied).eval()
        found[tied] = tuple(capture(model, (torch.zeros(rows, WIDTH),)) for rows in (4, 1))
    return found


def places(captured: CapturedGraph, plan: Plan) -> dict[str, frozenset[str]]:
    """Return the devices on which a plan has each weight, by the user's name of it."""
    found: dict[str, set[str]] = {}
    planned = planned_graph(captured, plan)
    for partition, graph in zip(plan.partitions, cut(planned, plan), strict=True):
        for node in graph.inputs:
            if node in planned.weights:
                found.setdefault(planned.names[node], set()).add(partition.device)
    return {name: frozenset(devices) for name, devices in found.items()}


def held(captured: CapturedGraph, at: Mapping[str, frozenset[str]], home: str = "cpu") -> WeightPlaces:
    names = {node.name: captured.names[node] for node in captured.weights}
    return WeightPlaces(
        {node: at[name] for node, name in names.items() if name in at},
        {node: home for node, name in names.items() if name in at},
    )


def plan_of(captured: CapturedGraph, request: Request, where: WeightPlaces | None = None) -> Plan:
    return make_plan(captured, analyze_memory(captured), request, where)


def request(devices: Any = PAIR, **options: Any) -> Request:
    return Request.check(options.pop("cache_bytes", "36KiB"), devices, **options)


OPTIONS: list[dict[str, Any]] = [
    {"footprint": "sum", "cache_bytes": "45KiB"}, {"footprint": "fused", "cache_bytes": ["24KiB", "30KiB"]},
    {"cache_bytes": ["36KiB", "40KiB"]}, {"cache_bytes": None}, {"memory": "device"}, {"algorithm": "greedy"},
    {"boundaries": "modules"}, {"order": "trace"}, {"cache_bytes": "12KiB"}, {"cache_bytes": ["12KiB", "14KiB"]},
    {"devices": THREE, "cache_bytes": "27KiB"}, {"on_shortage": "wrap", "cache_bytes": "24KiB"},
    {"devices": ("cuda:0", "cuda:1", "cuda:0")},
]  # fmt: skip
SLOW = [
    (False, {"objective": "traffic"}), (False, {"max_slack": 0.1}), *((True, options) for options in OPTIONS)
]  # fmt: skip


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {}), (True, {}), *((False, options) for options in OPTIONS),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
    ids=str,
)  # fmt: skip
def test_weights_stay_where_they_are(graphs: dict[bool, Graphs], options: dict[str, Any], tied: bool) -> None:
    many, one = graphs[tied]
    asked = request(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PartitionWarning)
        first = places(many, plan_of(many, asked))
        own = plan_of(one, asked)
        found = plan_of(one, asked, held(one, first))
    own_places, found_places = places(one, own), places(one, found)
    assert any(own_places[name] - first[name] for name in first), "both have the same boundaries anyway"
    assert all(found_places[name] <= first[name] for name in first)
    assert found.follows_weights and found.spill_bytes <= own.spill_bytes
    assert find_faults(one, found) == [] and Plan.from_json(found.to_json()) == found
    text = render(found, "text")
    assert "stay on the devices on which earlier graphs" in text and "Why no smaller maximum" not in text
    assert "No proof" in text and not own.follows_weights


def test_the_plan_is_the_graphs_own_where_nothing_has_to_move(graphs: dict[bool, Graphs]) -> None:
    _, one = graphs[False]
    own = plan_of(one, request())
    assert plan_of(one, request(), held(one, places(one, own))) == own
    assert plan_of(one, request(), WeightPlaces({}, {})) == own


def test_a_plan_that_would_spill_more_is_not_taken(graphs: dict[bool, Graphs]) -> None:
    many, one = graphs[False]
    asked = request(cache_bytes="29KiB")
    at = places(one, plan_of(one, asked))
    own = plan_of(many, asked)
    with pytest.warns(PartitionWarning, match="no plan with them there fits the devices as well") as caught:
        found = plan_of(many, asked, held(many, at))
    assert replace(found, note="") == own and not found.follows_weights
    moved = [name for name, devices in places(many, own).items() if devices - at[name]]
    size = sum(dict(Net(tied=False).named_parameters())[name].nbytes for name in moved)
    (text,) = [str(warning.message) for warning in caught]
    assert moved and f": {size / 1024:.3g} KiB are held once more" in text and "raise cache_bytes" in text
    assert found.note == f"{text.partition(';')[0]}."
    assert found.note in render(found, "text")


def test_what_goes_back_to_the_models_own_device_is_not_held_twice(graphs: dict[bool, Graphs]) -> None:
    _, one = graphs[False]
    at = {"layers.0.weight": frozenset({"cuda:1"}), "head.weight": frozenset({"cuda:0"})}  # no plan can have both
    for home, copied in (("cuda:0", 0), ("cuda:1", 0), ("cpu", 8)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = plan_of(one, request(), held(one, at, home))
        assert not found.follows_weights and "8 KiB of weights are on other devices" in found.note
        texts = [str(warning.message) for warning in caught if warning.category is PartitionWarning]
        assert [f": {copied} KiB are held once more" in text for text in texts] == [True] * bool(copied)


def test_a_time_objective_has_its_own_boundaries(graphs: dict[bool, Graphs]) -> None:
    _, one = graphs[False]
    at = {"layers.0.weight": frozenset({"cuda:1"})}
    asked = Request.check("V100", PAIR, objective="throughput")
    with pytest.warns(PartitionWarning, match="placed by time: 4 KiB are held once more"):
        found = plan_of(one, asked, held(one, at))
    assert "by the record of V100" in found.note and find_faults(one, found) == []


def test_without_a_budget_no_device_grows_by_more_than_would_be_held_twice(graphs: dict[bool, Graphs]) -> None:
    _, one = graphs[False]
    asked = request(cache_bytes=None)
    own = plan_of(one, asked)
    with pytest.warns(PartitionWarning, match="say with cache_bytes how much a device may hold"):
        found = plan_of(one, asked, held(one, {"head.weight": frozenset({"cuda:0"})}))
    assert replace(found, note="") == own
    name = "layers.4.weight"  # the first of the second device
    assert places(one, own)[name] == {"cuda:1"}
    found = plan_of(one, asked, held(one, {name: frozenset({"cuda:0"})}))
    assert found.follows_weights and places(one, found)[name] == {"cuda:0"}
    assert found.max_bytes - own.max_bytes <= LAYER and found.budget_bytes == found.max_bytes
    assert "is the smallest size with which 2 devices do with the weights where they are" in render(found, "text")
