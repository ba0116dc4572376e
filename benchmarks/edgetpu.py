"""Edge TPUs: does the planner choose as measurements would, and does the simulator predict them?

    python benchmarks/edgetpu.py [--all] [--figure docs/figures/edge_tpu.svg]

The measurements are those of `data/edgetpu_fc.csv` (source and licence: `data/README.md`): int8 networks
64 -> N -> N -> N -> N -> 10 on one to four devices. Nothing is measured here, so the figures are the same everywhere.

The device is the record "EdgeTPU"; the constants of its runtime are fitted, on the eight rows of `looked.FITTED`:
the call of a device, its bandwidth on chip and off chip, what a call takes that fetches weights, and a hop. With
several devices all of that but the first two passes one after another over the bus of one host. All other rows are
held out.

Printed: the constants; how far predictions are off, by kind of row; pairs of rows that are ranked wrongly; the
planner's choices. The exit code is 1 if a target is missed. `--figure` needs matplotlib (the extra `plot`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge_tpus.accuracy import every_row, judged
from edge_tpus.predictions import FITTED, fit, look
from edge_tpus.rows import read

DATA = Path(__file__).parent / "data" / "edgetpu_fc.csv"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every row, not the kinds alone")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw measured points and predicted lines here")
    arguments = parser.parse_args()
    rows = read(DATA)
    constants = fit(rows)
    certain = [row.name for row in rows if row.name in FITTED and not row.inferred]
    print(f"Fitted on {len(FITTED)} rows: {constants}")
    print(f"On the {len(certain)} of them whose cut is certain: {fit(rows, certain)}\n")
    predicted, chosen = look(rows, constants)
    if arguments.all:
        print(every_row(rows, predicted), end="\n\n")
    text, missed = judged(rows, predicted, chosen)
    print(text)
    print(f"\nMissed: {', '.join(missed)}." if missed else "\nAll targets are met.")
    if arguments.figure is not None:
        from edge_tpus.figure import draw

        draw(rows, predicted, arguments.figure)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
