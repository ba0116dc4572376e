"""The benchmark of the ranks' runtime judges rightly, and both of its sides compute the model."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from rank_runners.runners import even_part
from rank_runners.targets import OTHER, OURS, HopRow, Row, judge
from runtimes.models import Case

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "distributed.py"
CASE = Case("mlp", 1, 1 << 20, 8, "float32")


def row(ours: list[float], other: list[float], ranks: int = 2) -> Row:
    rates: Mapping[str, list[float]] = {OURS: ours, OTHER: other}
    return Row(CASE, ranks, 1, rates, {OURS: [2.0, 2.0, 4.0], OTHER: [1.0, 4.0, 2.0]})


def test_a_ratio_is_taken_within_a_round() -> None:
    """The machine was slow in the second round, for both."""
    assert row([30.0, 3.0, 30.0], [20.0, 2.0, 20.0]).throughput == 1.5
    assert row([1.0] * 3, [1.0] * 3).latency == 2.0


def test_the_worst_row_decides() -> None:
    rows = [row([12.0] * 3, [10.0] * 3), row([9.0] * 3, [10.0] * 3, 4)]
    hops = [
        HopRow(4096, {"bare": [10.0] * 3, "team": [11.0] * 3, "call": [12.5] * 3}),
        HopRow(8192, {"bare": [20.0] * 3, "team": [22.5] * 3, "call": [22.0] * 3}),
    ]
    throughput, team, call = judge(rows, hops)
    assert (throughput.value, throughput.where, throughput.met) == (0.9, rows[1].name, False)
    assert (team.value, team.where, team.met) == (1.125, "8192 bytes", True)
    assert (call.value, call.where, call.met) == (1.25, "4096 bytes", False)


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge([], []) == []
    assert [verdict.met for verdict in judge([row([10.0] * 3, [10.0] * 3)], [])] == [True]


def test_an_even_split_has_all_blocks_once() -> None:
    model = CASE.model()
    parts = [even_part(model, rank, 4) for rank in range(4)]
    assert [block for part in parts for block in part] == list(model)
    assert {len(part) for part in parts} == {2}
    with pytest.raises(AssertionError, match="8 blocks are not divided evenly by 3 ranks"):
        even_part(model, 0, 3)


@pytest.mark.slow
def test_the_quick_benchmark_runs_and_prints_every_target() -> None:
    command = [sys.executable, "-W", "ignore", str(BENCHMARK), "--quick", "--mib", "0.5", "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode in (0, 1), result.stderr  # timings decide no test
    for words in ("throughput, of torch pipelining", "hop of the runtime", "hop in a compiled call"):
        assert re.search(rf"{words}.* (met|missed)", result.stdout), result.stdout
