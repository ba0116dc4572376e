"""`Plan.to` and `Fit.to`: the engines by name, and plans and answers that have nothing to say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import Language, planned, words

import fx_partition
from fx_partition import PartitionError, Plan
from fx_partition.cli import main
from fx_partition.engines.module_stages import ModuleStages
from fx_partition.engines.registry import ENGINES


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(4, 2)


def test_every_engine_has_the_name_of_its_package(plan: Plan) -> None:
    assert set(ENGINES) == {
        "accelerate", "torch.distributed.pipelining", "torchtitan", "vllm", "sglang", "llama.cpp",
    }  # fmt: skip
    for engine in ENGINES:
        assert plan.to(engine), engine


@pytest.mark.parametrize("engine", ["vLLM", "", None, 3, "x" * 1000])
def test_an_unknown_engine_is_refused_with_those_that_there_are(plan: Plan, engine: Any) -> None:
    with pytest.raises(PartitionError, match=r"is not one of accelerate, .*llama\.cpp$") as error:
        plan.to(engine)
    assert len(str(error.value)) < 250


def test_a_plan_from_json_says_the_same(plan: Plan) -> None:
    read = Plan.from_json(plan.to_json())
    assert read == plan
    for engine in ENGINES:
        assert read.to(engine) == plan.to(engine)


def test_a_plan_without_modules_is_refused(plan: Plan) -> None:
    with pytest.raises(PartitionError, match="earlier release"):
        replace(plan, modules=ModuleStages()).to("vllm")


def test_a_model_that_does_not_fit_has_no_devices() -> None:
    answer = fx_partition.fit(Language(4), words(), devices="2x20KiB")
    assert not answer.fits
    with pytest.raises(PartitionError, match=r"does not fit.*it fits with .*devices"):
        answer.to("accelerate")


def test_devices_that_are_not_needed_are_no_stages() -> None:
    model = Language(4)
    budget = fx_partition.fit(model, words(), devices=2).devices[0].budget_bytes
    answer = fx_partition.fit(model, words(), devices=f"4x{budget}")
    assert [bool(device.modules) for device in answer.devices] == [True, True, False, False]
    assert len(answer.to("vllm").split(",")) == 2
    assert set(answer.to("accelerate").values()) == {0, 1}


def test_the_json_of_an_answer_lists_modules_by_device() -> None:
    found = fx_partition.fit(Language(2), words(), devices=1).to_dict()
    assert "modules" not in found and found["devices"][0]["modules"][0] == "embed"


def test_the_command_line_prints_what_an_engine_takes(plan: Plan, tmp_path: Path, capsys: Any) -> None:
    saved = tmp_path / "plan.json"
    saved.write_text(plan.to_json(), encoding="utf-8")

    def printed(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return str(capsys.readouterr().out)

    assert printed("report", str(saved), "--engine", "vllm") == plan.to("vllm") + "\n"
    assert json.loads(printed("report", str(saved), "--engine", "accelerate")) == plan.to("accelerate")
    points = json.loads(printed("report", str(saved), "--engine", "torch.distributed.pipelining"))
    assert set(points.values()) == {"BEGINNING"} and list(points) == list(plan.to("torch.distributed.pipelining"))
    program = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Language(4), (words(),)), program)
    answer = fx_partition.fit(Language(4), words(), devices=2)
    assert printed("fit", str(program), "--devices", "2", "--engine", "llama.cpp") == answer.to("llama.cpp") + "\n"
    assert main(["report", str(saved), "--engine", "vLLM"]) == 2
    assert "vllm" in capsys.readouterr().err
