"""`fx-partition simulate plan.json --model model.pt2 --device H100-SXM`: its options and its answer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from .common.units import parse_count
from .passes.plan.plan import Plan
from .report.output import write
from .simulator.simulate import MOST_RUNS, simulate


def add_options(parser: argparse.ArgumentParser, trust: str) -> None:
    """The options of the command, but for those that all commands have; ``trust``: what to say of models."""
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`")
    parser.add_argument(
        "--model", type=Path, metavar="MODEL.pt2", required=True, help=f"what the plan was made for; {trust}"
    )
    parser.add_argument(
        "--device", metavar="NAME[,NAME...]", required=True, help="name of a record, for all devices or each in order"
    )
    parser.add_argument("--microbatches", default="1", metavar="N", help="runs of the graph in a request")
    parser.add_argument("--steps", default="8", metavar="N", help="how many requests are looked at")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write what happens when, for Perfetto or chrome://tracing"
    )


@dataclass(frozen=True)
class Asked:
    """The options, read."""

    devices: list[str]
    microbatches: int
    steps: int
    trace: Path | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Asked:
        """From the words of a command line.

        Raises:
            ValueError: a number out of bounds.
        """
        return cls(
            args.device.split(","),
            parse_count(args.microbatches, "--microbatches", MOST_RUNS),
            parse_count(args.steps, "--steps", MOST_RUNS),
            args.trace,
        )


def answer(plan: Plan, program: ExportedProgram, asked: Asked, format: str) -> str:
    """What the command prints, as "text", "markdown" or "json".

    Raises:
        ValueError: no such device, another model's plan, or a trace that cannot be written.
    """
    names = asked.devices
    device = names if len(names) > 1 else names[0]
    found = simulate(program, plan=plan, device=device, microbatches=asked.microbatches, steps=asked.steps)
    if asked.trace is not None:
        write(found.trace(), asked.trace, "--trace")
    return found.report(format)
