"""What the tests of all checks do: run one check on one family, and compare what it found with the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import FAMILIES, Missing, table

#: One test a family.
EACH = [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for name in FAMILIES]


def those(check: str) -> list[Any]:
    """One test for each family that goes through a check."""
    return [each for each in EACH if table.is_for(check, FAMILIES[str(each.values[0])])]


def hold(check: str, name: str) -> None:
    """Run a check on a family and compare it with the table."""
    known = table.read()
    row = known.rows[name]
    if row[check].startswith("fail"):
        pytest.xfail(row[check])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = table.CHECKS[check](FAMILIES[name])
    except Missing as missing:
        pytest.skip(str(missing))
    finally:
        torch.set_num_threads(threads)
    if known.where == table.here():
        notes = [note for note in row["warnings"].split("; ") if note.startswith(f"{check}: ")]
        assert (table.cell(found), table.warned(check, found)) == (row[check], "; ".join(notes))
    else:
        parts = [int(part) for part in row[check].removeprefix("pass ").split("+")]
        assert sum(found.partitions) >= min(3, sum(parts)), f"{found.partitions}, and {parts} with {known.where}"
