"""From one device to thousands: Llama-3's shapes held on chip, or streamed from memory, on five kinds of device.

    python examples/scale_on_paper.py
    python examples/scale_on_paper.py --figure docs/figures
    python examples/scale_on_paper.py --plan            # real graphs through the planner, half a minute

Nothing is measured: formulas a layer (`on_paper.decode`) and the records of devices. ``--plan`` holds the number of
devices against plans of whole models on the meta device, cut by operators and slices of them where the formulas split
layers evenly.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from on_paper.frontier import frontier_figure
from on_paper.planned import planned
from on_paper.scale import counts, hops, latency, throughput


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Llama-3's shapes on chip, by the records of devices.")
    parser.add_argument("--figure", type=Path, metavar="DIR", help="where to write the figure of docs/paper.md")
    parser.add_argument("--plan", action="store_true", help="plan real graphs and compare the number of devices")
    args = parser.parse_args(argv)
    sections = (planned,) if args.plan else (counts, latency, throughput, hops)
    print("\n\n".join(section() for section in sections))
    if args.figure:
        frontier_figure(args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
