"""`fx-partition simulate plan.json --model model.pt2 --device H100-SXM`: its options and its answer."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch.export import ExportedProgram

from fx_partition.passes.plan import Plan
from fx_partition.report.written import write

from .simulate import simulate


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command, but for those that all commands have."""
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`")
    parser.add_argument("--model", type=Path, metavar="MODEL.pt2", required=True, help="what the plan was made for")
    parser.add_argument(
        "--device", metavar="NAME[,NAME...]", required=True, help="name of a record, for all devices or each in order"
    )
    parser.add_argument("--microbatches", type=int, default=1, metavar="N", help="runs of the graph in a request")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="how many requests are looked at")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write what happens when, for Perfetto or chrome://tracing"
    )


def answer(plan: Plan, program: ExportedProgram, args: argparse.Namespace, format: str) -> str:
    """What the command prints, as "text", "markdown" or "json".

    Raises:
        ValueError: no such device, another model's plan, or a trace that cannot be written.
    """
    names = args.device.split(",")
    found = simulate(
        plan, names if len(names) > 1 else names[0], model=program, microbatches=args.microbatches, steps=args.steps
    )
    if args.trace is not None:
        write(found.trace(), args.trace, "--trace")
    return found.report(format)
