"""Check families and print their rows: ``python -m tests.families [--write] [--check CHECK] [FAMILY ...]``.

With ``--write`` the rows go into ``table.md``, beside those of the families that were not named.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping

from . import FAMILIES, Family, Missing, table
from .matter import assert_inputs_matter, assert_weights_matter


def row(family: Family, known: Mapping[str, str], checks: list[str]) -> dict[str, str]:
    """A family's row; columns of checks that are not run are as ``known``."""
    found = {"family": family.name, "from": family.source}
    notes = []
    for name, check in table.CHECKS.items():
        if not table.is_for(name, family):
            found[name] = "-"
        elif name not in checks:
            found[name] = known.get(name, "-")
            notes += [note for note in known.get("warnings", "").split("; ") if note.startswith(f"{name}: ")]
        else:
            try:
                result = check(family)
                found[name] = table.cell(result)
                notes += [table.warned(name, result)]
            except Missing as missing:
                found[name] = f"skip: {missing}"
            except Exception as error:  # whatever goes wrong is what the table says
                found[name] = f"fail: {type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:200]
    return found | {"warnings": "; ".join(filter(None, notes))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--check", action="append", choices=[*table.CHECKS], help="default: all")
    parser.add_argument("--write", action="store_true", help="write the rows into table.md")
    asked = parser.parse_args()
    known = table.read().rows if table.PATH.exists() else {}
    rows = {name: dict(known[name]) for name in FAMILIES if name in known}
    for name in asked.names or FAMILIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_inputs_matter(FAMILIES[name])
            assert_weights_matter(FAMILIES[name])
            rows[name] = row(FAMILIES[name], known.get(name, {}), asked.check or [*table.CHECKS])
        print(" | ".join(rows[name][head] for head in table.HEADS), flush=True)
        if asked.write:
            table.write(table.Table(table.here(), {name: rows[name] for name in FAMILIES if name in rows}))


if __name__ == "__main__":
    main()
