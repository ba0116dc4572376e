"""Plots of a probe, in characters and as files, from made-up points."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import fx_partition
from fx_partition import cli
from fx_partition.hardware.cpu_info import Cache, CpuFacts
from fx_partition.hardware.detect import cpu_devices
from fx_partition.hardware.probe import Probe
from fx_partition.report.ascii_plot import Mark, draw
from fx_partition.report.markdown import to_markdown
from fx_partition.report.probe_document import marks, probe_document
from fx_partition.report.text import to_text

MIB = 2**20
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the extra plot")


def _probe() -> Probe:
    """A cache of 8 MiB of which 4 can be used: 40 GB/s, and 10 beyond."""
    facts = CpuFacts("A CPU", (Cache(2, 8 * MIB, 1, 1, False),), 1.0, 2e9, 2**34, "a test")
    sizes = [MIB * 2 ** (eighth / 8) for eighth in range(-8, 41)]
    rates = [1 / (hits / 40e9 + (1 - hits) / 10e9) for hits in (min(1.0, (4 * MIB / size) ** 3) for size in sizes)]
    points = list(zip(sizes, rates, strict=True))
    return Probe(points, cpu_devices(facts, points), Path("kept.json"))


def test_dots_fall_where_the_points_do_and_marks_stand_at_their_sizes() -> None:
    points = [(2.0**10, 90.0), (2.0**15, 90.0), (2.0**20, 30.0)]
    lines = draw(points, [Mark(2**15, "half", "|"), Mark(2**21, "no", ":")])
    (label,) = [line for line in lines if "half" in line]
    dots = [(row, column) for row, line in enumerate(lines) for column, char in enumerate(line) if char == "*"]
    (first, left), (same, middle), (below, right) = dots
    assert first == same < below and "no" not in "".join(lines)
    assert right - middle == pytest.approx(middle - left, abs=1) and label.index("half") == middle
    lined = [line for line in lines if len(line) > middle and line[middle] == "|"]
    assert len(lined) == 14  # all fifteen rows except the row of the dot
    # A label at a third of the height is a third of the largest number on the axis.
    assert [line.split()[0] for line in lines if "|" in line[:10] and line[:8].strip()] == ["90", "60", "30"]
    assert lines[same].startswith("      90 |") and lines[below].startswith("      30 |")
    assert lines[-1].split() == ["1", "KiB", "4", "KiB", "16", "KiB", "64", "KiB", "256", "KiB", "1", "MiB"]
    assert lines[-2][lines[-1].index("16 KiB")] == "+"


def test_labels_stay_within_the_lines() -> None:
    lines = draw([(2.0**12, 1e-3), (2.0**28, 2e-4)], [Mark(2**28 - 1, "a label of the last byte", ":")])
    assert any(line.endswith("a label of the last byte") for line in lines) and max(map(len, lines)) <= 98


def test_a_probe_is_drawn_in_text_and_markdown() -> None:
    probe = _probe()
    assert [(mark.line, mark.size) for mark in marks(probe)] == [
        (":", 8 * MIB), ("|", pytest.approx(4 * MIB, rel=0.15))
    ]  # fmt: skip
    text, markdown = to_text(probe_document(probe)), to_markdown(probe_document(probe))
    plot = text[text.index("GB/s that") : text.index("Caches")]
    assert max(map(len, plot.splitlines())) <= 100 and plot.count("*") > 40 and "cpu:L2: 8 MiB nominal" in plot
    assert "```text\n" in markdown and markdown.count("```") == 2


@needs_matplotlib
def test_a_plot_is_written_as_its_suffix_says(tmp_path: Path) -> None:
    probe = _probe()
    for name in ("a.svg", "b.svg", "c.png"):
        fx_partition.plot_probe(probe, tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text() and svg.startswith("<?xml")
    assert "8 MiB nominal" in svg and "usable" in svg and "working set" in svg
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "words"), [("a.pdf", ".png or .svg"), ("a", ".png or .svg"), ("no/a.svg", "folder")])
def test_what_cannot_be_written_is_refused_before_measuring(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "probe", lambda **_: pytest.fail("measured"))
    assert cli.main(["probe", "--plot", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def test_without_matplotlib_the_way_out_is_named_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli, "probe", lambda **_: pytest.fail("measured"))
    assert cli.main(["probe", "--plot", str(tmp_path / "a.svg")]) == 2
    assert 'pip install "fx-partition[plot]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_matplotlib
def test_the_command_writes_the_plot_and_prints_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "probe", lambda **_: _probe())
    assert cli.main(["probe", "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000 and "*" in capsys.readouterr().out
    (tmp_path / "folder.svg").mkdir()
    assert cli.main(["probe", "--plot", str(tmp_path / "folder.svg")]) == 2
    assert "cannot write" in capsys.readouterr().err
