"""The command `fx-partition simulate plan.json --model model.pt2 --device H100-SXM`: its options and its output."""

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
    """Add the options of the command that not all commands have.

    Args:
        parser: the command's parser.
        trust: the warning about model files, for the help.
    """
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`")
    parser.add_argument(
        "--model", type=Path, metavar="MODEL.pt2", required=True, help=f"the model that the plan was made for; {trust}"
    )
    parser.add_argument(
        "--device", metavar="NAME[,NAME...]", required=True,
        help="the name of a device record, for all devices, or one name for each device in order",
    )  # fmt: skip
    parser.add_argument("--microbatches", default="1", metavar="N", help="number of runs of the graph in a request (1)")
    parser.add_argument("--steps", default="8", metavar="N", help="number of requests to simulate (8)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a timeline of all events, for Perfetto or chrome://tracing"
    )


@dataclass(frozen=True)
class SimulateOptions:
    """The options of a command line, checked."""

    devices: list[str]
    microbatches: int
    steps: int
    trace: Path | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> SimulateOptions:
        """Return the options of a parsed command line.

        Raises:
            ValueError: a number is out of bounds.
        """
        return cls(
            args.device.split(","),
            parse_count(args.microbatches, "--microbatches", MOST_RUNS),
            parse_count(args.steps, "--steps", MOST_RUNS),
            args.trace,
        )


def answer(plan: Plan, program: ExportedProgram, options: SimulateOptions, format: str) -> str:
    """Return the output of the command, as "text", "markdown" or "json".

    Raises:
        ValueError: there is no such device, the plan is for another model, or the trace cannot be written.
    """
    names = options.devices
    device = names if len(names) > 1 else names[0]
    found = simulate(program, plan=plan, device=device, microbatches=options.microbatches, steps=options.steps)
    if options.trace is not None:
        write(found.trace(), options.trace, "--trace")
    return found.report(format)
