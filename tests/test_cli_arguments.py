"""Wrong arguments of the command line: one line on standard error, exit code 2, before any work is done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition import PartitionError, PartitionWarning, cli_files
from fx_partition.backends.dynamo.compiled_graph import CompiledGraph, publish
from fx_partition.backends.options.backend_options import Options
from fx_partition.cli import main
from fx_partition.common.units import LARGEST, parse_count, shown
from fx_partition.hardware import probe as probing
from fx_partition.hardware.device_names import parse_budget
from fx_partition.passes.plan.request import MOST_DEVICES
from fx_partition.simulator import simulate as simulation

DIGITS, MORE_DIGITS, NO_TEXT = "9" * 400, "9" * 5000, "\udcff"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its plan, and files and names that are neither."""
    folder = tmp_path_factory.mktemp("arguments")
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.randn(4, 16),), dynamic_shapes=shapes), folder / "m.pt2")
    assert main(["plan", str(folder / "m.pt2"), "--cache", "2KiB", "-o", str(folder / "plan.json")]) == 0
    (folder / "folder").mkdir()
    (folder / "junk").write_bytes(bytes(range(256)) * 8)
    (folder / "empty").write_bytes(b"")
    (folder / "cut.pt2").write_bytes((folder / "m.pt2").read_bytes()[:500])
    torch.save({"a": 1}, folder / "saved.pt2")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Assert that no command leaves a file behind."""
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "loop"}
    yield
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "loop"} == before


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the single line that a command prints to standard error."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("fx-partition: error: ") and err.endswith("\n") and err.count("\n") == 1
    assert len(err) < 1000
    return err


PLAN = ["plan", "m.pt2", "--cache", "2KiB"]
SIMULATE = ["simulate", "plan.json", "--model", "m.pt2", "--device", "H100-SXM"]
WRONG: dict[str, tuple[list[str], list[str], str]] = {
    "--cache": (
        ["plan", "m.pt2", "--cache"],
        ["", " ", "0", "-1", "nan", "inf", "1e400", "0x10", "1_000", ",", "6MiB,", "é", "٦MiB", NO_TEXT, "1\0",
         DIGITS, f"{DIGITS}GiB", MORE_DIGITS, "9" * 20, str(LARGEST + 1), "99999999TiB", "0.00001", "nosuch"],
        "--cache",
    ),
    "--bind": (
        [*PLAN, "--bind"],
        ["", "=", "x", "x=", "=5", "input.0=0", "input.0=-1", "input.0=1.5", "input.0=1e3", "input.0=nan", "input.0=²",
         "input.0=٤", "input.0=99999999999999999999", f"input.0={DIGITS}", f"input.0={MORE_DIGITS}", "input.0=8 ",
         "input.0=4=4", f"input.0={LARGEST + 1}"],
        "--bind",
    ),
    "a size that no plan can count": ([*PLAN, "--bind"], [f"input.0={LARGEST}", f"input.0={2**56}"], "counts to 2**63"),
    "--devices": (
        [*PLAN, "--devices"],
        ["", "0", "-1", "1.5", "99999999", "9" * 20, DIGITS, MORE_DIGITS, str(MOST_DEVICES + 1), ",", "a,,b", "a,", "²",
         NO_TEXT, "a," + NO_TEXT, "a\nb"],
        "--devices",
    ),
    "devices by name": ([*PLAN, "--devices"], ["a" + ",a" * MOST_DEVICES], "at most 65536"),
    "--max-slack": ([*PLAN, "--max-slack"], ["", "x", "0x1p3", "nan", "-1", "-0.5"], "slack"),
    "--microbatches": (
        [*SIMULATE, "--microbatches"],
        ["", "0", "-1", "1.5", "nan", "1000001", "9" * 20, DIGITS, MORE_DIGITS, "²"],
        "--microbatches",
    ),
    "--steps": ([*SIMULATE, "--steps"], ["", "0", "-1", "1.5", "x", "1000001", DIGITS, MORE_DIGITS], "--steps"),
    "runs in all": ([*SIMULATE, "--steps", "1000", "--microbatches"], ["1000", "1000000"], "at most 1000000 are"),
    "--device": (SIMULATE[:-1], ["", ",", "nosuch", "H100-SXM,", "H100-SXM,H100-SXM", NO_TEXT], "device"),
    "--seconds": (
        ["probe", "--seconds"], ["", "x", "nan", "inf", "-inf", "-1", "1e400", "1e9", "3601", DIGITS], "seconds"
    ),
    "devices NAME": (["devices"], ["", ",", "nosuch", "é", NO_TEXT], "no device is named"),
    "a choice": ([*PLAN, "--algorithm"], ["", "best", "dp "], "--algorithm"),
    "a command": ([], ["", "bogus", NO_TEXT, "-o"], "--help"),
    "--import": ([*PLAN, "--import"], ["", "nosuch", "a b", "..", "é", "os.nosuch", "sys;os", NO_TEXT], "--import"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_argument_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "sweep", lambda *_: pytest.fail("measured"))
    before, texts, words = WRONG[name]
    for text in texts:
        is_like_an_option = text.startswith("-") and before
        command = [*before[:-1], f"{before[-1]}={text}"] if is_like_an_option else [*before, text]
        assert words in refused(command, capsys), text


MODELS = ["", ".", "/", "missing", "folder", "loop", "fifo", "/dev/null", "/dev/zero", "x" * 300, "plan.json/x", "junk",
          "empty", "cut.pt2", "saved.pt2", "plan.json", NO_TEXT, "a\0b"]  # fmt: skip
PLANS = [*MODELS[:13], "m.pt2", NO_TEXT, "a\0b"]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_a_model_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["plan", name, "--cache", "2KiB"],
        ["why", "plan.json", "--model", name],
        ["simulate", "plan.json", "--model", name, "--device", "H100-SXM"],
    ):
        said = refused(command, capsys)
        assert f"torch.export.save(program, {name!r})" not in said


@pytest.mark.parametrize("name", PLANS)
def test_what_is_not_a_plan_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["report", name], ["why", name], ["simulate", name, "--model", "m.pt2", "--device", "H100-SXM"]):
        said = refused(command, capsys)
        assert not name or f"-o {name}" not in said


def test_a_file_that_cannot_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "Permission denied" in refused(["report", "plan.json"], capsys)


@pytest.mark.parametrize(
    "name", ["", ".", "/", "folder", "missing/x.json", "junk/x.json", "loop", "x" * 300, "a\0b", "m.pt2", "./plan.json"]
)
def test_a_place_that_cannot_be_written_is_found_before_anything_is_done(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fx_partition.cli.load_program", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("fx_partition.cli.read_plan", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(probing, "sweep", lambda *_: pytest.fail("measured"))
    for option in ("-o", "--trace"):
        assert f"another file with {option}" in refused([*SIMULATE, option, name], capsys)
    if name not in ("m.pt2", "./plan.json"):
        assert "another file with --plot" in refused(["probe", "--plot", name], capsys)
        assert "another file with -o" in refused([*PLAN, "-o", name], capsys)


def test_two_results_do_not_go_to_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name two files" in refused([*SIMULATE, "-o", "new.json", "--trace", "folder/../new.json"], capsys)


def test_a_hint_never_writes_over_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'torch.export.save(program, "MODEL.pt2")' in refused(["plan", "plan.json", "--cache", "2KiB"], capsys)
    assert "-o PLAN.json" in refused(["report", "m.pt2"], capsys)


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fx_partition.cli.read_plan", interrupt)
    assert main(["report", "plan.json"]) == 130
    assert capsys.readouterr() == ("", "")


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_standard_output_that_takes_nothing_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["report", "plan.json"]) == 2
    assert capsys.readouterr().err == "fx-partition: error: cannot write to standard output: No space left on device\n"


def test_a_reader_that_goes_is_not_an_error(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["report", "plan.json"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", ["plan", "why", "simulate"])
def test_the_help_says_what_loading_a_program_may_do(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "may run code that it holds, so name only files that you trust" in words


MODULE = """
import torch
library = torch.library.Library("fx_partition_cli", "FRAGMENT")
library.define("twice(Tensor x) -> Tensor")
library.impl("twice", lambda x: x * 2, "CPU")
library.impl("twice", lambda x: torch.empty_like(x), "Meta")
"""


TYPES = """
import torch
from torch.utils import _pytree as pytree
class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second
pytree.register_pytree_node(
    Pair, lambda pair: ([pair.first, pair.second], None), lambda values, _: Pair(*values),
    serialized_type_name="fx_partition_cli_types.Pair",
)
class Makes(torch.nn.Module):
    def forward(self, x):
        return Pair(x + 1, x * 2)
"""
EXPORT = """
import torch
from fx_partition_cli_types import Makes
torch.export.save(torch.export.export(Makes(), (torch.ones(2),)), "pair.pt2")
"""


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.fx_partition_cli.twice(x)


def test_a_program_of_a_package_s_operators_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fx_partition_cli_operators.py").write_text(MODULE)
    (tmp_path / "fx_partition_cli_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    exec(MODULE, names)
    model = str(tmp_path / "twice.pt2")
    torch.export.save(torch.export.export(Twice(), (torch.ones(2),)), model)
    names["library"]._destroy()

    asked = ["plan", model, "--cache", "1KiB"]
    said = refused(asked, capsys)
    assert "fx_partition_cli.twice" in said and "--import MODULE" in said and "RuntimeError)" not in said
    assert "ZeroDivisionError" in refused([*asked, "--import", "fx_partition_cli_broken"], capsys)
    assert main([*asked, "--import", "fx_partition_cli_operators"]) == 0
    assert "Fits one device" in capsys.readouterr().out
    sys.modules["fx_partition_cli_operators"].library._destroy()


def test_a_program_of_a_package_s_types_says_which_module_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another process, because torch keeps every type that it has registered."""
    (tmp_path / "fx_partition_cli_types.py").write_text(TYPES)
    (tmp_path / "export.py").write_text(EXPORT)
    subprocess.run([sys.executable, "export.py"], cwd=tmp_path, check=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ["plan", str(tmp_path / "pair.pt2"), "--cache", "1KiB"]
    said = refused(asked, capsys)
    assert "fx_partition_cli_types.Pair" in said and "--import fx_partition_cli_types registers them" in said
    assert main([*asked, "--import", "fx_partition_cli_types"]) == 0
    assert "Fits one device" in capsys.readouterr().out


def test_the_first_cause_is_a_sentence() -> None:
    try:
        try:
            raise KeyError("first. And more of it")
        except KeyError as error:
            raise RuntimeError("second") from error
    except RuntimeError as error:
        assert cli_files._reason(error) == "KeyError: 'first"
    assert cli_files._reason(ValueError()) == "ValueError"
    assert len(cli_files._reason(ValueError("x" * 9999))) < 400


@pytest.mark.parametrize("size", [10**400, "9" * 400, 2**63, "1" + "0" * 30 + "KiB", 0, -1, True, None, 1.5, "1e3"])
def test_sizes_have_bounds(size: Any) -> None:
    with pytest.raises(ValueError, match="cache_bytes=") as found:
        parse_budget(size)
    assert len(str(found.value)) < 300


def test_sizes_are_exact() -> None:
    assert parse_budget("9007199254740993") == 2**53 + 1
    assert parse_budget("1.5 KiB") == 1536 and parse_budget("0.1MB") == 100_000
    assert parse_budget(LARGEST) == parse_budget(str(LARGEST)) == LARGEST
    assert parse_count("0009", "n", 10**6) == 9


def test_what_is_shown_is_short() -> None:
    assert shown(3) == "3" and shown("x") == "'x'" and len(shown("x" * 10**6)) <= 80 and len(shown(10**9999)) <= 80


@pytest.mark.parametrize("devices", [99_999_999, 10**400, 0, -1, True, ["cpu"] * (MOST_DEVICES + 1)])
def test_devices_have_bounds(devices: Any) -> None:
    with pytest.raises(PartitionError, match="devices"):
        fx_partition.plan(nn.Linear(2, 2), torch.ones(1, 2), cache_bytes="1KiB", devices=devices)


@pytest.mark.parametrize("slack", [float("nan"), -1.0, 10**400, "1"])
def test_slack_has_bounds(slack: Any) -> None:
    with pytest.raises(PartitionError, match="max_slack"):
        fx_partition.plan(nn.Linear(2, 2), torch.ones(1, 2), cache_bytes="1KiB", max_slack=slack)


@pytest.mark.parametrize("number", [10**400, 2**63, 0, -1, 1.5, True])
def test_bound_sizes_have_bounds(number: Any) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    inputs = {"example_inputs": torch.ones(3, 2), "dynamic_shapes": shapes}
    with pytest.raises(ValueError, match="bind") as found:
        fx_partition.plan(nn.Linear(2, 2), cache_bytes="1KiB", bind={"input.0": number}, **inputs)
    assert len(str(found.value)) < 300


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, 10**400])
def test_seconds_have_bounds(seconds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "sweep", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="seconds"):
        fx_partition.probe(seconds=seconds)


def test_a_simulation_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    plan = fx_partition.plan(model, x, cache_bytes="1KiB")
    for numbers in ({"steps": 10**9}, {"microbatches": 10**400}, {"steps": 1.5}, {"steps": 2000, "microbatches": 2000}):
        with pytest.raises(PartitionError, match="1000000"):
            fx_partition.simulate(model, x, plan=plan, device="H100-SXM", **numbers)
    monkeypatch.setattr(simulation, "MOST_RUNS", 20)
    assert fx_partition.simulate(model, x, plan=plan, device="H100-SXM", steps=8).steps == 8


@pytest.mark.parametrize("name", ["folder.txt/x.txt", "missing/x.md", "x" * 300 + ".json", "a\0b.txt", "dir.md"])
def test_a_report_that_cannot_be_written_is_found_before_a_compile(name: str, tmp_path: Path) -> None:
    (tmp_path / "dir.md").mkdir()
    with pytest.raises(PartitionError, match=r"cannot write.*report="):
        Options.check({"report": str(tmp_path / name)})
    Options.check({"report": str(tmp_path / "report.md")})
    assert not (tmp_path / "report.md").exists()


def test_a_report_that_fails_later_leaves_the_compiled_graph(tmp_path: Path) -> None:
    plan = fx_partition.plan(nn.Linear(2, 2), torch.ones(1, 2), cache_bytes="1KiB")
    (tmp_path / "now").mkdir()
    asked = Options.check({"report": str(tmp_path / "now" / "report.md")})
    (tmp_path / "now").rmdir()
    graph = CompiledGraph(plan, (), [])
    with pytest.warns(PartitionWarning, match="the report of a graph was not written"):
        publish(lambda: None, graph, asked)
