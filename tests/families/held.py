"""Run one check on one family, and compare the outcome with the table; all tests of families do this."""

from __future__ import annotations

from typing import Any

import pytest

from . import FAMILIES, Missing, table
from .check import one_thread

#: One test a family.
EACH = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for name in FAMILIES]


def those(check: str) -> list[Any]:
    """One test for each family that goes through a check."""
    return [each for each in EACH if table.is_for(check, FAMILIES[str(each.values[0])])]


def hold(check: str, name: str) -> None:
    """Run a check on a family and compare it with the table."""
    known = table.read()
    row = known.rows[name]
    try:
        with one_thread():
            found = table.CHECKS[check](FAMILIES[name])
    except Missing as missing:
        assert known.where != table.here(), missing
        pytest.skip(str(missing))
    if known.where == table.here():
        ours, theirs = (table.cell(found), table.warned(check, found)), (row[check], table.warnings_of(row, check))
        assert ours == theirs, f"{ours}, and {theirs} in the table"
    else:
        parts = [int(part) for part in row[check].removeprefix("pass ").split("+")]
        assert sum(found.partitions) >= min(3, sum(parts)), f"{found.partitions}, and {parts} with {known.where}"
