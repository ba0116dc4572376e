"""Check families and print their rows: ``python -m tests.families [--write] [--check CHECK] [FAMILY ...]``.

With ``--write`` the rows go into ``table.md``; the rows of families that were not named stay. On another processor, or
with another torch, all of it must be written again.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping

from . import FAMILIES, Family, Missing, table
from .check import one_thread
from .matter import assert_inputs_matter, assert_weights_matter


def row(family: Family, known: Mapping[str, str], checks: list[str]) -> dict[str, str]:
    """A family's row; columns of checks that are not run are as ``known``."""
    found = {"family": family.name, "from": family.source}
    notes = []
    for name, check in table.CHECKS.items():
        if not table.is_for(name, family):
            found[name] = "-"
        elif name not in checks:
            found[name] = known.get(name, "fail: not run")
            notes.append(table.warnings_of(known, name) if known else "")
        else:
            try:
                result = check(family)
                found[name] = table.cell(result)
                notes += [table.warned(name, result)]
            except Missing as missing:
                found[name] = f"skip: {missing}"
            except Exception as error:  # whatever goes wrong is what the table says
                found[name] = f"fail: {type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:200]
    return found | {"warnings": "; ".join(filter(None, notes)), "why not as others": family.why}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--check", action="append", choices=[*table.CHECKS], help="default: all")
    parser.add_argument("--write", action="store_true", help="write the rows into table.md")
    asked = parser.parse_args()
    there = table.read()
    if there.where != table.here() and asked.write and (asked.names or asked.check):
        parser.error(f"the table was measured with {there.where}: write all of it, or nothing")
    known = there.rows if there.where == table.here() else {}
    rows = {name: dict(known[name]) for name in FAMILIES if name in known}
    for name in asked.names or FAMILIES:
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore")
            assert_inputs_matter(FAMILIES[name])
            assert_weights_matter(FAMILIES[name])
            rows[name] = row(FAMILIES[name], known.get(name, {}), asked.check or [*table.CHECKS])
        print(" | ".join(rows[name][head] for head in table.HEADS), flush=True)
        if asked.write:
            table.write(table.Table(table.here(), {name: rows[name] for name in FAMILIES if name in rows}))


if __name__ == "__main__":
    main()
