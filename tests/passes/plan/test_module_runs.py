"""The partition of each module and weight that a plan says, against what torch says of the model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from language_models import WIDTH, Language, whole_layers, words
from torch import nn

import fx_partition
from fx_partition import PartitionError, Plan
from fx_partition.engines.module_stages import ModuleRun, heads, list_member


def paths_of_steps(model: nn.Module, x: torch.Tensor) -> list[tuple[str, str]]:
    """Each call of the trace and its module, by torch.export's own record."""
    graph = torch.export.export(model, (x,)).module(check_guards=False).graph
    return [
        (node.name, next(reversed(node.meta["nn_module_stack"].values()))[0].removeprefix("L['self']").strip("."))
        for node in graph.nodes if node.op == "call_function"
    ]  # fmt: skip


def test_runs_are_the_trace() -> None:
    model = Language(4).eval()
    plan = whole_layers(model, 3)
    partition = {name: p.index for p in plan.partitions for name in p.nodes}
    assert partition == plan.partition_of
    wanted: list[ModuleRun] = []
    for name, path in paths_of_steps(model, words()):
        run = ModuleRun(path, partition[name])
        if not wanted or wanted[-1] != run:
            wanted.append(run)
    assert [replace(run, mixes="") for run in plan.modules.runs] == wanted


def test_weights_that_go_with_their_modules_are_not_listed() -> None:
    assert whole_layers(Language(4), 2).modules.weights == {}


def test_weights_that_several_partitions_read_are_listed_by_all_names() -> None:
    plan = whole_layers(Language(4, tied=True), 3)
    assert plan.modules.weights == {"embed.weight": (0, 2), "head.weight": (0, 2)}


class Read(nn.Module):
    """Modules whose weights others read, a view of a weight, and weights that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.silent = nn.Linear(WIDTH, WIDTH)
        self.never = nn.Linear(1, 1)
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x) - self.mean
        return torch.mm(self.b(x), self.silent.weight.t())


def test_weights_of_no_module_with_steps_are_listed_with_their_readers() -> None:
    plan = fx_partition.plan(Read(), torch.zeros(2, WIDTH), devices=3)
    partition = plan.partition_of
    assert plan.modules.weights == {
        "mean": (partition["sub"],), "silent.weight": (partition["mm"],), "silent.bias": (),
        "never.weight": (), "never.bias": (),
    }  # fmt: skip


def test_json_with_a_partition_that_is_not_there_is_refused() -> None:
    data = json.loads(whole_layers(Language(2, tied=True), 2).to_json())
    data["modules"]["runs"][0][1] = 2
    with pytest.raises(PartitionError, match=r"modules\.runs\[0\]\[1\]: it is 2, and partitions are 2"):
        Plan.from_json(json.dumps(data))
    data["modules"]["runs"][0][1] = 0
    data["modules"]["weights"]["head.weight"] = [0, 2]
    with pytest.raises(PartitionError, match=r"modules\.weights\.head\.weight\[1\]: it is 2"):
        Plan.from_json(json.dumps(data))
    del data["modules"]
    assert Plan.from_json(json.dumps(data)).modules.runs == ()  # as earlier releases wrote it


def test_verify_sees_another_partition_of_a_module() -> None:
    model = Language(2).eval()
    plan = whole_layers(model, 2)
    first, *rest = plan.modules.runs
    edited = replace(plan, modules=replace(plan.modules, runs=(replace(first, stage=1), *rest)))
    assert fx_partition.verify(plan, model, words()) == []
    assert fx_partition.verify(edited, model, words()) == ["modules.runs[0][1]: it is 1, and must be 0"]


def test_paths() -> None:
    assert list(heads("a.0.b")) == ["", "a", "a.0", "a.0.b"]
    assert list(heads("")) == [""]
    assert list_member("a.0.b.1") == "a.0" and list_member("a.b") == "" and list_member("3") == "3"
