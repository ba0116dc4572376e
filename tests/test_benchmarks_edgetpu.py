"""The Edge TPU check: networks as they were measured, and that its targets are met."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from edgetpu import FITTED, cuts, errors, fetched, fit, kind, misranked, parts, predict, read, sizes, spills

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "edgetpu.py"
DATA = BENCHMARK.parent / "data" / "edgetpu_fc.csv"


def test_sizes_are_those_that_the_devices_compiler_reports() -> None:
    layers = sizes(2620)
    assert parts(layers, (1, 2, 2)) == pytest.approx([0.16, 13.11, 6.72], abs=0.005)
    assert fetched(layers, (1, 2, 2), 7.8) == pytest.approx([0, 6.56, 0], abs=0.005)
    assert sum(fetched(layers, (5,), 7.8)) == pytest.approx(13.11, abs=0.005)
    assert sorted(map(len, cuts(3))) == [3] * 6


def test_rows_that_were_not_fitted_are_predicted() -> None:
    rows = read(DATA)
    assert len(rows) == 396 and len(FITTED) <= 8 and len(set(map(kind, rows))) == 10
    held_out = [row for row in rows if row.hidden in (1500, 1700, 2500) and row.name not in FITTED]
    predicted = predict(held_out, fit(rows))
    assert statistics.median(errors(held_out, predicted)) < 0.05
    assert statistics.median(errors([row for row in held_out if spills(row)], predicted)) < 0.05
    wrong, count = misranked(held_out, predicted, lambda a, b: a.hidden == b.hidden)
    assert not wrong and count > 20


@pytest.mark.slow
def test_all_targets_are_met() -> None:
    found = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "All targets are met." in found.stdout
