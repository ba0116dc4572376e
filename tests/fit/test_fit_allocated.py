"""What `fit` says that a device holds is no less than what its modules really allocate."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fit import FAMILIES, SETTINGS, rows_of

# They compile models by inductor, or run whole ones, for minutes.
pytestmark = pytest.mark.slow

pytest.importorskip("transformers")


@pytest.mark.parametrize(("family", "setting"), [("llama", SETTINGS[0]), ("gpt2", SETTINGS[2])])
def test_no_device_allocates_more_than_was_said(family: str, setting: tuple[int, int, int]) -> None:
    rows = rows_of(family, setting)
    assert len(rows) == setting[2]
    assert [row for row in rows if not 0 <= row.slack <= 0.03] == []


@pytest.mark.slow
def test_twelve_models_at_three_settings() -> None:
    assert len(FAMILIES) == 12
    rows = [row for family in FAMILIES for setting in SETTINGS for row in rows_of(family, setting)]
    assert [row for row in rows if row.slack < 0] == []
    assert statistics.median(row.slack for row in rows) <= 0.03
