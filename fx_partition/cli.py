"""The command line: `fx-partition plan model.pt2 --cache 6MiB`, then `report`, `why`, `simulate`; `fit`; `devices`,
`probe`.

Exit codes: 0; 2 with one line on standard error that names the fault and the way out; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from . import cli_fit as fitting
from . import cli_simulate as simulation
from .cli_files import TRUST, load_program, read_plan
from .common.units import LARGEST, parse_count, shown
from .engines.registry import ENGINES, engine_text
from .hardware.detect import detect
from .hardware.device_names import find_device, parse_budget
from .hardware.probe import probe
from .hardware.records import devices
from .passes.api import plan as make_plan
from .passes.api import verify
from .passes.constraints.module_boundaries import NODES
from .passes.plan.plan import Plan
from .passes.plan.request import (
    ALGORITHMS,
    FOOTPRINTS,
    MEMORIES,
    MOST_DEVICES,
    OBJECTIVES,
    ON_CHIP,
    ON_SHORTAGE,
    ORDERS,
    OVERSIZE,
)
from .report import render
from .report.device_document import device_dict, device_document, devices_document, devices_json
from .report.markdown import to_markdown
from .report.output import check_place, write, written
from .report.probe_document import probe_document, probe_json
from .report.probe_plot import check_plot, plot_probe
from .report.proof_sections import why
from .report.text import to_text

# The most faults of a plan that an error names; the others are counted.
_SHOWN = 8
_SUFFIXES = {".json": "json", ".md": "markdown"}


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line like any other error: in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; ``argv`` is without the program's name.

    Example::

        >>> main(["plan", "model.pt2", "--cache", "6MiB", "-o", "plan.json"])  # doctest: +SKIP
        0
    """
    try:
        args = _parser().parse_args(argv)
        _check_places(args)
        answer = _answer(args)
        if args.output is None:
            _print(answer)
        else:
            write(answer, args.output, "-o")
    except ValueError as error:
        line = f"fx-partition: error: {' '.join(str(error).split())}"
        print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)  # a file name may not be valid text
        return 2
    except KeyboardInterrupt:
        return 130  # what shells return after Ctrl-C
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has closed the pipe, as in `fx-partition devices | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python flushes at exit, and fails again
    except OSError as error:
        raise ValueError(f"cannot write to standard output: {error.strerror}") from error


def _check_places(args: argparse.Namespace) -> None:
    """Raise an error if a file to write cannot be written, before the work whose result it is for."""
    read = [Path(path) for name in ("model", "plan") if (path := getattr(args, name, None)) is not None]
    written = [("-o", args.output), ("--trace", getattr(args, "trace", None)), ("--plot", getattr(args, "plot", None))]
    taken: dict[Path, str] = {}
    for option, path in written:
        if path is not None:
            check_place(path, option, read)
            if (other := taken.setdefault(path.resolve(), option)) != option:
                raise ValueError(f"{other} and {option} both name {path}; name two files")


def _answer(args: argparse.Namespace) -> str:
    if args.command == "plan":
        return render(_planned(args), _format(args))
    if args.command == "fit":
        return fitting.answer(args, _format(args))
    if args.command == "devices":
        return _listed(args)
    if args.command == "probe":
        if args.plot is not None:
            check_plot(args.plot)
        found = probe(seconds=_seconds(args.seconds))
        if args.plot is not None:
            plot_probe(found, args.plot)
        return written(lambda: probe_document(found), lambda: probe_json(found), _format(args))
    if args.command == "simulate":
        options = simulation.SimulateOptions.of(args)
        return simulation.answer(read_plan(args.plan), load_program(args.model, args.modules), options, _format(args))
    plan = read_plan(args.plan)
    if getattr(args, "engine", None) is not None:
        return engine_text(plan.to(args.engine))
    return _explained(plan, args) if args.command == "why" else render(plan, _format(args))


def _explained(plan: Plan, args: argparse.Namespace) -> str:
    """Return the proofs in words; if a model is named, check the plan against it first."""
    checked = "As the plan says; --model MODEL.pt2 checks it."
    if args.model is not None:
        reasons = verify(plan, load_program(args.model, args.modules))
        if reasons:
            more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            raise ValueError(f"{args.plan} does not hold for {args.model}: {'; '.join(reasons[:_SHOWN])}{more}")
        checked = f"Checked: {_what_was_checked(plan)} from {args.model}, and holds."
    document = why(plan, checked)  # JSON of a proof is the plan itself
    return to_markdown(document) if _format(args) == "markdown" else to_text(document)


def _what_was_checked(plan: Plan) -> str:
    """Return what `verify` computed again and what it did not, as the subject and verb of a sentence."""
    if plan.footprint == "fused":
        return "every figure, with the kernels that inductor is expected to make, was computed again"
    counted = plan.certificate.exhaustive or plan.certificate.orders_tried == 1
    but = "" if counted else " but how many orders were searched"
    return f"every footprint, every run above and all else that the plan says{but} was computed again"


def _listed(args: argparse.Namespace) -> str:
    """Return the records of all devices, or of one."""
    if args.name is not None:
        found = find_device(args.name)
        return written(lambda: device_document(found), lambda: json.dumps(device_dict(found), indent=2), _format(args))
    records, here = devices(), detect()
    return written(lambda: devices_document(records, here), lambda: devices_json(records, here), _format(args))


def _parser() -> _Parser:
    parser = _Parser(
        prog="fx-partition",
        description="Cut a PyTorch graph into partitions that each fit one device's on-chip memory.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('fx-partition')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    plan = commands.add_parser("plan", help="plan an exported model and report on the plan")
    plan.add_argument("model", type=Path, metavar="MODEL.pt2", help=f"a program saved by torch.export.save; {TRUST}")
    plan.add_argument(
        "--cache", metavar="SIZE[,SIZE...]",
        help="on-chip bytes of one device (6MiB, 6MB, 6291456, the name of a device such as H100-SXM, or auto for that "
        "of this machine), or of each in order; without it, the smallest for --devices is found",
    )
    plan.add_argument(
        "--bind", action="append", default=[], metavar="DIM=SIZE",
        help="a size for a symbolic dimension, by input (input_ids.0=8) or symbol (s0=8); may be repeated",
    )  # fmt: skip
    plan.add_argument("--algorithm", choices=ALGORITHMS, default="dp")
    plan.add_argument(
        "--objective", choices=OBJECTIVES, default="balanced",
        help="what to minimise after the number of partitions; or time, on a device that --cache names",
    )  # fmt: skip
    plan.add_argument(
        "--max-slack", metavar="SHARE",
        help="how much larger the largest partition may be than the smallest possible, to cut fewer bytes: 0.05",
    )
    plan.add_argument(
        "--devices", metavar="N|NAMES", help="the number of devices, or their names (cuda:0,cuda:1)"
    )
    plan.add_argument(
        "--on-shortage", choices=ON_SHORTAGE, default="balance", help="what to do with fewer devices than needed"
    )
    plan.add_argument(
        "--oversize", choices=OVERSIZE, default="stream", help="what to do with an operator larger than the cache"
    )
    plan.add_argument("--order", choices=ORDERS, default="search", help="whether to try other orders of the nodes")
    how = "what to count: the peak of eager mode, the sum of all layers, or the peak of compiled code"
    plan.add_argument("--footprint", choices=FOOTPRINTS, default="peak", help=how)
    how = "the memory that --cache is of: on-chip counts the rows that a gather reads, device counts weights whole"
    plan.add_argument("--memory", choices=MEMORIES, default=ON_CHIP, help=how)
    fitting.add_boundaries(plan, NODES)
    plan.add_argument(
        "--replicate", action="store_true", help="put copies of the largest partitions on devices that are left over"
    )

    report = commands.add_parser("report", help="report on a saved plan")
    report.add_argument(
        "plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`"
    )

    why = commands.add_parser("why", help="say in words why no plan is better than a saved one")
    why.add_argument("plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`")
    why.add_argument(
        "--model", type=Path, metavar="MODEL.pt2",
        help=f"check every figure and both proofs against the model; {TRUST}",
    )  # fmt: skip

    simulate = commands.add_parser("simulate", help="estimate the time of a saved plan on a device, by its record")
    simulation.add_options(simulate, TRUST)

    fit = commands.add_parser("fit", help="say whether a model fits devices, and where to cut it, before it is loaded")
    fitting.add_options(fit, TRUST)

    listing = commands.add_parser("devices", help="list the records of devices, and the devices of this machine")
    listing.add_argument("name", nargs="?", metavar="NAME", help="one device: every figure with its source")

    measure = commands.add_parser("probe", help="measure the caches of this machine's CPU, for devices and auto")
    measure.add_argument("--seconds", default="10", help="about how long to measure, 0 to 3600 (10)")
    measure.add_argument("--plot", type=Path, metavar="FILE", help="also write a plot to FILE.png or FILE.svg")

    for command in (plan, why, simulate, fit):
        command.add_argument(
            "--import", dest="modules", action="append", default=[], metavar="MODULE",
            help="import this module before loading MODEL.pt2: it registers types or operators that the model uses "
            "(transformers.modeling_outputs); may be repeated",
        )  # fmt: skip
    for command in (plan, report, why, simulate, fit, listing, measure):
        formats = command.add_mutually_exclusive_group()
        if command is not why:
            formats.add_argument("--json", dest="format", action="store_const", const="json")
        if command in (report, fit):
            formats.add_argument(
                "--engine", choices=ENGINES, metavar="NAME",
                help=f"print where the model is cut as the value that another engine takes: {', '.join(ENGINES)}",
            )  # fmt: skip
        formats.add_argument("--markdown", dest="format", action="store_const", const="markdown")
        command.add_argument(
            "-o", "--output", type=Path, metavar="FILE", help="write to this file; its suffix sets the format"
        )
    return parser


def _format(args: argparse.Namespace) -> str:
    suffix = args.output.suffix if args.output is not None else ""
    return args.format or _SUFFIXES.get(suffix, "text")


def _planned(args: argparse.Namespace) -> Plan:
    bind = dict(map(_binding, args.bind))
    cache, devices, max_slack = _cache(args.cache), _devices(args.devices), _share(args.max_slack)
    if cache is None and devices is None:
        raise ValueError("say how large one device is (--cache 6MiB), or with --devices how many there are")
    return make_plan(
        load_program(args.model, args.modules), cache_bytes=cache, bind=bind, algorithm=args.algorithm,
        objective=args.objective, max_slack=max_slack, order=args.order, footprint=args.footprint, devices=devices,
        memory=args.memory, boundaries=fitting.boundaries_of(args.boundaries), on_shortage=args.on_shortage,
        oversize=args.oversize, replicate=args.replicate,
    )  # fmt: skip


def _cache(text: str | None) -> str | list[str] | None:
    if text is None:
        return None
    sizes = text.split(",")
    for size in sizes:
        parse_budget(size, "--cache")
    return sizes[0] if len(sizes) == 1 else sizes


def _binding(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--bind {shown(text)} is not DIM=SIZE; for example --bind input_ids.0=8")
    return name, parse_count(size, f"--bind {name[:80]}", LARGEST)


def _devices(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if text[:1].isdecimal():
        return tuple(f"device:{i}" for i in range(parse_count(text, "--devices", MOST_DEVICES)))
    names = tuple(text.split(","))
    if not all(name[:1].isalpha() and name.isprintable() for name in names):
        raise ValueError(f"--devices {shown(text)}: write how many there are (4) or their names (cuda:0,cuda:1)")
    return names


def _share(text: str | None) -> float | None:
    return None if text is None else _number(text, "--max-slack", "a share such as 0.05")


def _seconds(text: str) -> float:
    return _number(text, "--seconds", "a number of seconds such as 10")


def _number(text: str, option: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{option}={shown(text)} is not {what}") from error
