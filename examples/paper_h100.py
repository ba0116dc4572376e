"""The paper's experiment by formula: 16 H100, 16 layers, bf16, batch 128, 10,000 tokens; TP=8 x PP=2 or by layer.

    python examples/paper_h100.py
    python examples/paper_h100.py --figure docs/figures

Nothing is measured: seconds follow from the records of devices (`fx-partition devices H100-SXM` says which figures are
a datasheet's or an estimate) and the formulas of `on_paper.decode`. The paper gives neither the shape of its models nor
what a token a second counts; both shapes here are chosen so that their weights come to its 60 GB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from on_paper.claim import bound, claim, figures, losing, needed, shapes, steps
from on_paper.search import search, search_figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The paper's experiment, by the records of devices.")
    parser.add_argument("--figure", type=Path, metavar="DIR", help="where to write the figures of docs/paper.md")
    args = parser.parse_args(argv)
    print("\n\n".join(section() for section in (claim, shapes, needed, steps, bound, losing, search)))
    if args.figure:
        figures(args.figure)
        search_figure(args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
