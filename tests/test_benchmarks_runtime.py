"""The runtime's benchmarks judge rightly: where the knee is, what a ratio is, which rows a target is about."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from hop import hops
from runtime import ratios
from runtimes.cache import knee
from runtimes.models import KINDS, Case, size_of
from runtimes.targets import Row, judge
from runtimes.workers import ALL, AUTO, COPIES, CUT, GPIPE, ONE, REPLICAS, WAYS

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "runtime.py"
MIB = 1 << 20


def row(rates: Mapping[str, list[float]], size: float = 0.5, batch: int = 1) -> Row:
    """A row of three rounds; ways that are not named are slow."""
    every = {name: rates.get(name, [1.0, 1.0, 1.0]) for name in WAYS}
    weight_bytes = int(size * MIB)
    return Row(Case("mlp", size, weight_bytes, batch, "float32"), weight_bytes, every, {})


def test_the_knee_is_before_the_first_set_that_is_read_too_slowly() -> None:
    curve = dict.fromkeys(range(2, 13), 100.0) | {13: 79.0, 14: 90.0, 15: 40.0, 32: 20.0}
    assert knee(curve, nominal=16) == 12


def test_a_dip_below_half_the_nominal_size_is_noise() -> None:
    assert knee({2: 100.0, 4: 60.0, 6: 100.0, 8: 100.0, 12: 95.0, 16: 30.0}, nominal=16) == 12


def test_a_ratio_is_taken_within_a_round() -> None:
    """The machine was slow in the second round, for both."""
    rates = {AUTO: [30.0, 3.0, 30.0], REPLICAS: [20.0, 2.0, 20.0], ONE: [10.0, 3.0, 10.0]}
    assert row(rates).ratio(AUTO, [REPLICAS]) == 1.5
    assert row(rates).ratio(AUTO, [REPLICAS, ONE]) == 1.5


def test_a_target_is_about_its_rows_alone() -> None:
    fits = row({AUTO: [9.0] * 3, REPLICAS: [10.0] * 3, ONE: [5.0] * 3, GPIPE: [3.0] * 3, ALL: [4.0] * 3}, 1.0, 1)
    half = row({AUTO: [11.0] * 3, REPLICAS: [10.0] * 3, ALL: [10.0] * 3}, 2.0, 16)
    beyond = row({AUTO: [1.0] * 3, REPLICAS: [10.0] * 3, GPIPE: [10.0] * 3, ALL: [10.0] * 3}, 4.0, 4)
    verdicts = judge([fits, half, beyond], MIB)
    assert [round(verdict.value, 3) for verdict in verdicts] == [0.9, 1.1, 1.1, 3.0, 2.25]
    assert [verdict.rows for verdict in verdicts] == [1, 1, 1, 1, 1]
    assert [verdict.met for verdict in verdicts] == [True, True, False, True, True]


def test_the_worst_row_decides_and_at_best_the_best() -> None:
    rows = [row({AUTO: [x] * 3, REPLICAS: [10.0] * 3}, 2.0, batch) for batch, x in ((4, 12.0), (16, 9.0))]
    every, best = judge(rows, MIB)
    assert (every.value, every.where, every.reached, every.met) == (0.9, rows[1].case.name, 1, False)
    assert (best.value, best.where, best.met) == (1.2, rows[0].case.name, True)


def test_what_cutting_adds_to_copying_is_printed() -> None:
    """As a ratio within a round: the quotient of the medians would be 2."""
    rates = {CUT: [10.0, 20.0, 90.0], COPIES: [8.0, 80.0, 10.0], AUTO: [9.0] * 3, REPLICAS: [6.0] * 3}
    titles, cells = (line.strip("|").split("|") for line in ratios([row(rates)], "github").splitlines()[::2])
    printed = dict(zip(map(str.strip, titles), map(str.strip, cells), strict=True))
    assert printed["cut / copies"] == "1.25" and printed["auto / inductor, replicas"] == "1.50"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_has_the_size_asked_for_in_equal_halves(kind: str, dtype: str) -> None:
    case = Case(kind, 2, 2 * MIB, 3, dtype)
    model = case.model()
    assert 0.8 * case.weight_bytes < size_of(model) <= 1.02 * case.weight_bytes
    half = len(model) // 2
    assert size_of(model[:half]) == size_of(model[half:])
    first, second = case.requests(2)
    assert not torch.equal(first, second)
    result = model(first)
    assert result.shape == first.shape and result.dtype == case.torch_dtype
    assert 0.01 < result.float().abs().max() < 1000  # far from denormal numbers and from infinity


def test_a_hop_counts_where_the_next_stage_was_waiting() -> None:
    times = [[(0, 10), (11, 20)], [(10, 30), (33, 90)], [(30, 40), (91, 99)]]
    assert hops(times).waits == [0.003]
    assert hops(times).stages == [0.01, 0.009, 0.02, 0.057, 0.01, 0.008]


@pytest.mark.slow
def test_the_quick_benchmark_runs_and_prints_every_target() -> None:
    command = [sys.executable, "-W", "ignore", str(BENCHMARK), "--quick", "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode in (0, 1), result.stderr  # timings decide no test
    assert "mlp 2x, batch 1, float32" in result.stdout
    assert "batch 1, of inductor on all cores" in result.stdout
