"""The command line, on a model exported to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition.cli import main


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.randn(4, 64),), dynamic_shapes=shapes)
    path = tmp_path_factory.mktemp("cli") / "model.pt2"
    torch.export.save(program, path)
    return str(path)


def test_plan_prints_a_report(exported: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", exported, "--cache", "40KiB"]) == 0
    text = capsys.readouterr().out
    plan = fx_partition.plan(torch.export.load(exported), cache_bytes="40KiB")
    assert f"Needs {plan.num_partitions} devices of 40 KiB" in text
    assert str(plan.max_bytes) in text and str(plan.cut_bytes) in text


def test_json_is_the_plan_under_the_binding(exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", exported, "--cache", "40KiB", "--bind", "input.0=8", "--json"]) == 0
    text = capsys.readouterr().out
    plan = fx_partition.Plan.from_json(text)
    assert plan == fx_partition.plan(torch.export.load(exported), cache_bytes="40KiB", bind={"input.0": 8})
    assert set(plan.bindings.values()) == {8}
    saved = tmp_path / "plan.json"
    saved.write_text(text)
    assert main(["report", str(saved)]) == 0
    assert capsys.readouterr().out.strip() == fx_partition.report(plan).strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cache", "much"], "'much' is not a size"),
        (["--cache", "40KiB", "--bind", "x.0=8"], "'x.0' is not a symbol of this graph"),
        (["--cache", "40KiB", "--bind", "input.0"], "input.0"),
    ],
)
def test_errors_are_one_line_and_exit_2(
    exported: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", exported, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fx-partition: error: ") and words in error and error.count("\n") == 1


def test_files_that_are_not_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corrupt = tmp_path / "corrupt.pt2"
    corrupt.write_bytes(b"this is not an archive")
    missing = tmp_path / "missing.pt2"
    for path in (corrupt, missing):
        assert main(["plan", str(path), "--cache", "1MiB"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("fx-partition: error: ") and path.name in error


def test_why_says_it_in_words_and_checks_it(
    exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "plan.json"
    assert main(["plan", exported, "--cache", "40KiB", "-o", str(saved)]) == 0
    assert main(["why", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "Why not fewer than 2 partitions" in text and "hold" in text and "--model MODEL.pt2 checks it" in text
    assert main(["why", str(saved), "--model", exported, "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "## Why no smaller maximum" in text and "Checked: every footprint" in text

    plan = json.loads(saved.read_text())
    plan["certificate"]["witnesses"][0][2] += 1
    plan["partitions"][0]["total_bytes"] -= 8
    del plan["max_bytes"]  # it would contradict that
    saved.write_text(json.dumps(plan))
    assert main(["why", str(saved), "--model", exported]) == 2
    error = capsys.readouterr().err
    assert "does not hold for" in error and "witnesses[0][2]: it is" in error
    assert "partitions[0].total_bytes: it is" in error


def test_why_of_another_model(exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.pt2"
    torch.export.save(torch.export.export(nn.Linear(8, 8), (torch.zeros(2, 8),)), other)
    saved = tmp_path / "plan.json"
    assert main(["plan", str(other), "--cache", "1MiB", "-o", str(saved)]) == 0
    assert main(["why", str(saved), "--model", exported]) == 2
    assert "made for another graph" in capsys.readouterr().err


def test_sizes_and_devices_of_the_command_line(exported: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", exported, "--devices", "2"]) == 0
    assert "is the smallest size with which 2 devices do" in capsys.readouterr().out
    assert main(["plan", exported, "--cache", "20KiB,60KiB,40KiB", "--objective", "traffic", "--max-slack", "0.1"]) == 0
    assert "devices of 20 KiB to 60 KiB" in capsys.readouterr().out
    assert main(["plan", exported, "--cache", "40KiB", "--footprint", "fused", "--order", "trace"]) == 0
    assert "footprint fused" in capsys.readouterr().out
    assert main(["plan", exported, "--cache", "EdgeTPU", "--objective", "latency"]) == 0
    assert "All partitions and hops, one after another, take" in capsys.readouterr().out
    assert main(["plan", exported, "--cache", "40KiB", "--objective", "latency"]) == 2
    assert "needs to know how fast a device is" in capsys.readouterr().err
    assert main(["plan", exported]) == 2
    assert "--cache 6MiB" in capsys.readouterr().err


def bad_plans(text: str) -> dict[str, bytes]:
    """Files that are not a plan, by name."""
    data = json.loads(text)
    hanging = json.loads(text)
    hanging["partitions"][0]["symbolic"]["weight"] = "9**9**9"
    backwards = json.loads(text)
    backwards["partitions"][0]["nodes"].reverse()
    return {
        "empty": b"",
        "binary": bytes(range(256)),
        "utf-16": text.encode("utf-16"),
        "half": text[: len(text) // 2].encode(),
        "deep": b"[" * 100_000,
        "not a plan": b'{"a": 1}',
        "another version": json.dumps({**data, "version": 7}).encode(),
        "NaN": json.dumps({**data, "max_slack": float("nan")}).encode(),
        "wrong type": json.dumps({**data, "partitions": 7}).encode(),
        "a power": json.dumps(hanging).encode(),
        "backwards": json.dumps(backwards).encode(),
        "another graph": json.dumps({**data, "graph": "x"}).encode(),
    }


def test_a_bad_plan_is_one_line_and_exit_2(exported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", exported, "--cache", "40KiB", "--json"]) == 0
    files = bad_plans(capsys.readouterr().out)
    for name, content in files.items():
        path = tmp_path / "plan.json"
        path.write_bytes(content)
        readable = name in ("backwards", "another graph")  # faults that only the model shows
        commands = {
            "report": [], "why": [], "why checked": ["--model", exported],
            "simulate": ["--model", exported, "--device", "H100-SXM"],
        }  # fmt: skip
        for command, options in commands.items():
            wanted = 0 if readable and not options else 2
            assert main([command.split()[0], str(path), *options]) == wanted, (name, command)
            error = capsys.readouterr().err
            if wanted:
                assert error.startswith("fx-partition: error: ") and error.count("\n") == 1, (name, command)
                assert len(error) < 1500 and "Traceback" not in error
