"""The page of options: its tables have every option and no other, the defaults of the code, and examples that hold."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from page_blocks import ROOT

import fx_partition
from fx_partition.backends.options.backend_options import Options

PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
PLAN, BACKEND = "Options of a plan", "Options of torch.compile"
# Those that take a model, its inputs and the options of a plan, each with the section of its own options.
VERBS: dict[str, Callable[..., Any]] = {
    "Options of a pipeline": fx_partition.pipeline,
    "Options for training": fx_partition.to_pipeline_stages,
    "Options of a simulation": fx_partition.simulate,
}


def rows(section: str) -> dict[str, tuple[str, str]]:
    """Of each option in the tables of a section: its default and its example."""
    cells = [line.strip("|").split(" | ") for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): (row[2].strip(" `"), row[4].strip(" `")) for row in cells}


def defaults(verb: Callable[..., Any]) -> dict[str, Any]:
    """The keyword options that a function names itself."""
    found = inspect.signature(verb).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def given(example: str) -> dict[str, Any]:
    names = {"fx_partition": fx_partition}
    return eval(f"dict({example})", names)  # type: ignore[no-any-return]


def test_a_plan_has_these_options_and_defaults() -> None:
    assert {name: eval(default) for name, (default, _) in rows(PLAN).items()} == defaults(fx_partition.plan)


@pytest.mark.parametrize("section", VERBS)
def test_a_verb_has_these_options_and_defaults(section: str) -> None:
    own = defaults(VERBS[section])
    shared = {name for name in own if name in rows(PLAN) and own[name] == defaults(fx_partition.plan)[name]}
    shown = {name: eval(default) for name, (default, _) in rows(section).items()}
    assert shown == {name: own[name] for name in own if name not in shared or name in shown}


def test_the_backend_has_these_options() -> None:
    with pytest.raises(fx_partition.PartitionError) as error:
        Options.check({"no such option": 1})
    known = set(str(error.value).rpartition(" are ")[2].split(", "))
    assert known == {*rows(BACKEND), *rows(PLAN)} - {"dynamic_shapes"}
    plain = Options.check({})
    for name in ("report", "inductor", "microbatches", "replan"):
        assert eval(rows(BACKEND)[name][0]) == getattr(plain, name)


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    class Blocks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = torch.relu(block(x))
            return x

    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(Blocks().eval(), (torch.randn(8, 256),), dynamic_shapes=shapes)


@pytest.mark.parametrize("name", rows(PLAN))
def test_an_example_of_a_plan_holds(name: str, exported: torch.export.ExportedProgram) -> None:
    example = given(rows(PLAN)[name][1])
    assert name in example
    plan = fx_partition.plan(exported, **{"cache_bytes": "600KiB", **example})
    assert fx_partition.verify(plan, exported) == []


@pytest.mark.parametrize("name", [name for name in rows(BACKEND) if name not in ("group", "output", "timeout")])
def test_an_example_of_the_backend_is_accepted(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Options.check({"cache_bytes": "1MiB", **given(rows(BACKEND)[name][1])})


@pytest.mark.parametrize("name", rows("Options of a simulation"))
def test_an_example_of_a_simulation_holds(name: str, exported: torch.export.ExportedProgram) -> None:
    example = {"device": "H100-SXM", **given(rows("Options of a simulation")[name][1])}
    assert fx_partition.simulate(exported, cache_bytes="600KiB", **example).throughput > 0
