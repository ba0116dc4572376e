"""The Edge TPU check: networks as measured, its targets are met, and the page shows what it prints."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from edge_tpus import figure
from edge_tpus.accuracy import judged, kind, medians, misranked
from edge_tpus.predictions import FITTED, Choice, Network, fit
from edge_tpus.rows import Row, cuts, fetched, parts, read, sizes

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT / "benchmarks" / "edgetpu.py"
DATA = BENCHMARK.parent / "data" / "edgetpu_fc.csv"
PAGE = (ROOT / "docs" / "edge_tpu.md").read_text(encoding="utf-8")
(SHOWN,) = re.findall(r"^    python benchmarks/edgetpu.py\n\n```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def test_sizes_are_those_that_the_devices_compiler_reports() -> None:
    layers = sizes(2620)
    assert parts(layers, (1, 2, 2)) == pytest.approx([0.16, 13.11, 6.72], abs=0.005)
    assert fetched(layers, (1, 2, 2), 7.8) == pytest.approx([0, 6.56, 0], abs=0.005)
    assert sum(fetched(layers, (5,), 7.8)) == pytest.approx(13.11, abs=0.005)
    assert sorted(map(len, cuts(3))) == [3] * 6


def test_rows_that_were_not_fitted_are_predicted() -> None:
    rows = read(DATA)
    assert len(rows) == 396 and len(FITTED) <= 8 and len(set(map(kind, rows))) == 10
    constants, predicted = fit(rows), {}
    held_out = [row for row in rows if row.hidden in (1500, 1700, 2500) and row.name not in FITTED]
    for hidden in (1500, 1700, 2500):
        one = Network(hidden, constants)
        predicted |= {row.name: one.milliseconds(row.cut) for row in held_out if row.hidden == hidden}
    assert max(medians(held_out, predicted)) < 0.05
    wrong, count = misranked(held_out, predicted, lambda a, b: a.hidden == b.hidden)
    assert not wrong and count > 20


def test_a_cut_is_simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Network(100, fit(read(DATA)))
    first = one.milliseconds((2, 3))
    monkeypatch.setattr("fx_partition.simulate", lambda *_, **__: pytest.fail("again"))
    assert one.milliseconds((2, 3)) == first


def test_rows_whose_cut_is_inferred_are_counted_and_set_apart() -> None:
    rows = read(DATA)
    inferred = [row for row in rows if row.inferred]
    assert len(inferred) == 16 and {row.name[1:] for row in inferred} == {(2, "balanced")}
    assert min(row.hidden for row in inferred) == 2020 and len([row for row in inferred if row.name in FITTED]) == 1

    right, wrong = Row(100, 1, "single", (5,), 2.0), Row(2020, 2, "balanced", (3, 2), 10.0, inferred=True)
    text, missed = judged([right, wrong], {right.name: 2.02, wrong.name: 20.0}, [Choice(100, 1, 1, 1, [])])
    assert "Of 1 rows the cut was inferred" in text and "1 are held out" in text
    assert "Without these: 1 rows, median error 1.0%; 1 that spill, 1.0%." in text
    assert missed == ["median error <= 5%", "median error <= 5% where it spills"]


def test_the_pages_say_what_is_shown() -> None:
    simulator = " ".join((ROOT / "docs" / "simulator.md").read_text(encoding="utf-8").split())
    all_rows, spilling = (re.search(rf"^{name} +(\d+) +([\d.]+%)", SHOWN, re.M) for name in ("all", "all that spill"))
    assert all_rows and spilling
    assert f"Of the {all_rows[1]} others the median error is {all_rows[2]}" in simulator
    assert f"of the {spilling[1]} that spill {spilling[2]}" in simulator
    inferred = re.search(r"^Of (\d+) rows the cut was inferred", SHOWN, re.M)
    assert inferred and f"**{inferred[1]} of them" in PAGE
    assert f"For {inferred[1]} rows the cut was inferred" in simulator
    for hidden, tpus, _ in FITTED:
        assert re.search(rf"^\|[^|]*\b{hidden}\b[^|]*\| {tpus} \|", PAGE, re.M)
    assert (ROOT / "docs" / "figures" / "edge_tpu.svg").is_file() and "(figures/edge_tpu.svg)" in PAGE


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the extra plot")
def test_the_figure_has_a_panel_for_each_number_of_devices(tmp_path: Path) -> None:
    rows = [row for row in read(DATA) if row.hidden in (100, 1500, 2500)]
    predicted = {row.name: row.ms for row in rows}
    for name in ("a.svg", "b.svg"):
        figure.draw(rows, predicted, tmp_path / "new" / name)
    svg = (tmp_path / "new" / "a.svg").read_text()
    assert all(f">{n} device" in svg for n in range(1, 5)) and "balanced, predicted" in svg
    assert svg == (tmp_path / "new" / "b.svg").read_text() and "cut inferred from the time" in svg


@pytest.mark.slow
def test_all_targets_are_met_and_the_page_shows_what_is_printed() -> None:
    found = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.strip() == SHOWN.strip() and "All targets are met." in SHOWN
