"""The check of the cost model on this machine measures the core, then models that it has not seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from cost_model import ALLOCATOR, Row, rows_of
from predicted.core import Core
from runtimes.models import Case

import fx_partition
from fx_partition import Overheads

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "cost_model.py"


def test_an_error_is_relative_to_what_was_measured() -> None:
    case = Case("mlp", 1, 1 << 20, 1, "float32")
    assert Row(case, "whole", 1, "on-chip", measured=2.0, predicted=1.5).error == 0.25


def test_a_model_is_timed_whole_and_in_two_stages() -> None:
    case = Case("mlp", 0.02, 20 << 10, 1, "float32")
    core = Core(fx_partition.device("EPYC9684X-CCD"), Overheads(call=1.0, overlap=False))
    with torch.no_grad():
        rows = list(rows_of(case, core))
    assert [row.part for row in rows] == ["whole", "stage 0", "stage 1"]
    assert all(0 < row.measured < 1 < row.predicted < 1.001 and row.bound == "launch" for row in rows)
    assert rows[1].held < rows[0].held


@pytest.mark.slow
def test_the_command_prints_core_rows_and_medians() -> None:
    found = subprocess.run(
        [sys.executable, BENCHMARK, "--model", "mlp", "--mib", "0.1", "--batch", "1", "--sweep-seconds", "0.1"],
        capture_output=True, text=True, env={**os.environ, **ALLOCATOR}, check=False,
    )  # fmt: skip
    if found.returncode == 2:
        pytest.skip(f"the core could not be measured: {found.stderr}")
    assert found.returncode in (0, 1), found.stderr
    assert re.search(r"on chip [\d.]+ GB/s.*peak \d+ GFLOP/s.*kernel [\d.]+ us", found.stdout)
    assert len(re.findall(r"^mlp +0.1", found.stdout, re.MULTILINE)) == 3
    assert re.search(r"Median error of all rows at most 20%: (met|missed)\.", found.stdout)
