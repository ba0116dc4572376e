"""The name of a device is accepted wherever an option takes a size."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition.cli import main
from fx_partition.hardware.device_names import find_device, parse_budget


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """2 MiB of weights in eight layers."""
    return nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))


X = torch.zeros(2, 256)


def test_a_name_is_its_usable_bytes(model: nn.Module) -> None:
    plan = fx_partition.plan(model, X, cache_bytes="V100")
    assert plan.budget_bytes == fx_partition.device("V100").usable_bytes == parse_budget(" v100 ")
    assert fx_partition.split(model, X, cache_bytes="V100").plan.budget_bytes == plan.budget_bytes


def test_a_list_mixes_names_and_sizes(model: nn.Module) -> None:
    plan = fx_partition.plan(model, X, cache_bytes=["600KiB", "V100"])
    assert plan.device_budgets == (600 * 1024, fx_partition.device("V100").usable_bytes)


def test_auto_is_the_first_device_of_this_machine() -> None:
    first = fx_partition.detect()[0]
    assert parse_budget("auto") == parse_budget(first.name) == first.usable_bytes
    assert find_device("auto") == first


def test_close_matches_are_sought_only_for_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: pytest.fail("sought"))
    for name in ("auto", fx_partition.detect()[-1].name, "V100"):
        assert parse_budget(name) > 0


def test_the_backend_takes_names(model: nn.Module) -> None:
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": "V100", "devices": "cpu"})
    torch.testing.assert_close(compiled(X), model(X))
    assert "4.12 MiB" in str(fx_partition.report(compiled))


@pytest.mark.parametrize("name", ["H100-SMX", "MiB", "auto2", "K80"])
def test_what_is_neither_says_both_ways(name: str) -> None:
    with pytest.raises(ValueError, match=r'is not a size .*"6MiB", nor the name of a device .*"H100-SXM".*auto'):
        parse_budget(name)


def test_a_size_that_is_none_says_both_ways() -> None:
    with pytest.raises(ValueError, match=r'"6MiB".*"H100-SXM"'):
        parse_budget("6XB")


def test_the_command_line_takes_names(tmp_path: Path, model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (X,)), saved)
    assert main(["plan", str(saved), "--cache", "V100,600KiB,EdgeTPU", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device_budgets"][1] == 600 * 1024
    assert main(["plan", str(saved), "--cache", "V10"]) == 2
    assert "--cache='V10' is not a size" in capsys.readouterr().err


def test_the_command_lists_records_and_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    text = capsys.readouterr().out
    for found in (*fx_partition.devices(), *fx_partition.detect()):
        assert f"\n  {found.name} " in text
    h200 = next(line for line in text.splitlines() if line.startswith("  H200 "))
    assert " ".join(h200.split()) == "H200 60 MiB 43 MiB 10,070 3,890 989 bfloat16 datasheet and measured"
    l40s = next(line for line in text.splitlines() if line.startswith("  L40S "))
    assert l40s.endswith("inferred: usable, on-chip GB/s, off-chip GB/s")


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [d["name"] for d in listed["records"]] == [d.name for d in fx_partition.devices()]
    assert [d["name"] for d in listed["here"]] == [d.name for d in fx_partition.detect()]
    groq = next(d for d in listed["records"] if d["name"] == "GroqLPU1")
    assert groq["memory_bytes"] is None and groq["figures"]["onchip_bytes"]["confidence"] == "datasheet"


def test_the_command_of_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "h100-pcie", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "**H100-PCIe holds 36 MiB of 50 MiB on chip.**" in text
    assert "| usable_bytes " in text and "RRZE-HPC/gpu-benches" in text and "- 25 MiB: 99%" in text
    assert main(["devices", "h100-pcie", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usable_bytes"] == 36 * 2**20
    assert main(["devices", "h1000"]) == 2
    assert "close: " in capsys.readouterr().err
