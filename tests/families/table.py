"""The table of families: what each check found, as ``table.md`` keeps it and the tests compare it.

A cell is "pass 5" (five partitions; "pass 4+2" for two graphs), "-" where a check is not for this family, or
"fail: why", which no table that is checked in has. Partitions and warnings belong to the versions and the processor
that the first line names: elsewhere footprints may differ by some bytes, and only that a check passes is compared, and
that it still cuts.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from .check import Found, check_backend, check_inductor, check_pipeline, check_split
from .family import Family

PATH = Path(__file__).with_name("table.md")
#: The checks whose results are kept, by the head of their column.
CHECKS: dict[str, Callable[[Family], Found]] = {
    "split": check_split, "backend": check_backend, "inductor": check_inductor, "pipeline": check_pipeline,
}  # fmt: skip
HEADS = ("family", "from", *CHECKS, "warnings", "why not as others")


def is_for(check: str, family: Family) -> bool:
    """Whether a family goes through a check."""
    flags = {
        "split": True, "backend": family.by_aot_eager, "inductor": family.by_inductor, "pipeline": family.by_pipeline,
    }  # fmt: skip
    return flags[check]


@dataclass(frozen=True)
class Table:
    """Rows by family and column, and where they were measured."""

    where: str
    rows: Mapping[str, Mapping[str, str]]


def here() -> str:
    """What the numbers of partitions depend on: scratch memory is measured, and other processors take other kernels."""
    able = {name: value for name, value in torch.cpu.get_capabilities().items() if not name.startswith("num_")}
    digest = hashlib.sha256(repr(sorted(able.items())).encode()).hexdigest()[:8]
    processor = f"{platform.machine()} {able.get('cpu_name', '')} (abilities {digest})"
    version = str(torch.__version__).split("+")[0]
    return f"torch {version}, transformers {metadata.version('transformers')}, {processor}"


def cell(found: Found) -> str:
    """What a check that passed leaves in its column."""
    return f"pass {'+'.join(map(str, found.partitions))}"


def warned(check: str, found: Found) -> str:
    """What a check leaves in the column of warnings; "" for nothing."""
    return "; ".join(f"{check}: {text}" for text in found.warnings).replace("|", "/").replace("\n", " ")


def warnings_of(row: Mapping[str, str], check: str) -> str:
    """What a check has left in the column of warnings of a row."""
    return "; ".join(note for note in row["warnings"].split("; ") if note.startswith(f"{check}: "))


def read() -> Table:
    """The table as it is checked in."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    where = lines[0].removeprefix("Measured with ").removesuffix(".")
    rows = {}
    for line in lines:
        cells = [part.strip() for part in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0] not in (HEADS[0], "---"):
            rows[cells[0]] = dict(zip(HEADS, cells, strict=True))
    return Table(where, rows)


def write(table: Table) -> None:
    """Write the table over the one that is there."""
    lines = [f"Measured with {table.where}.", "", "Written by `python -m tests.families --write`; see `table.py`.", ""]
    rows = [HEADS, ["---"] * len(HEADS), *([row[head] for head in HEADS] for row in table.rows.values())]
    lines += [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
