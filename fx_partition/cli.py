"""The command line: `fx-partition plan model.pt2 --cache 6MiB`, then `report`, `why`, `simulate`; `devices`, `probe`.

Exit codes: 0, and 2 with one line on standard error that names the thing and the way out.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from .cost import command as simulation
from .hardware.budgets import find_device
from .hardware.detect import detect
from .hardware.probe import probe
from .hardware.records import devices
from .passes.api import plan as make_plan
from .passes.capture import capture
from .passes.check_plan import check_plan
from .passes.gather import gather_facts
from .passes.plan import Plan
from .passes.request import ALGORITHMS, FOOTPRINTS, OBJECTIVES, ON_SHORTAGE, ORDERS, OVERSIZE
from .passes.sizes import parse_bytes
from .report import render
from .report.devices import device_dict, device_document, devices_document, devices_json
from .report.markdown import to_markdown
from .report.probe import probe_document, probe_json
from .report.probe_plot import check_plot, plot_probe
from .report.proof import why
from .report.text import to_text
from .report.written import write, written

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
        answer = _answer(args)
        if args.output is None:
            print(answer)
        else:
            write(answer, args.output, "-o")
    except ValueError as error:
        print(f"fx-partition: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _answer(args: argparse.Namespace) -> str:
    if args.command == "plan":
        return render(_planned(args), _format(args))
    if args.command == "devices":
        return _listed(args)
    if args.command == "probe":
        if args.plot is not None:
            check_plot(args.plot)
        found = probe(seconds=args.seconds)
        if args.plot is not None:
            plot_probe(found, args.plot)
        return written(lambda: probe_document(found), lambda: probe_json(found), _format(args))
    plan = _read_plan(args.plan)
    if args.command == "simulate":
        return simulation.answer(plan, _load_program(args.model), args, _format(args))
    return _explained(plan, args) if args.command == "why" else render(plan, _format(args))


def _explained(plan: Plan, args: argparse.Namespace) -> str:
    """The proofs in words, and whether they hold for the model, if one is named."""
    checked = "As the plan says; --model MODEL.pt2 checks it."
    if args.model is not None:
        captured = capture(_load_program(args.model))
        reasons = check_plan(captured, gather_facts(captured), plan)
        if reasons:
            raise ValueError(f"{args.plan} does not hold for {args.model}: {'; '.join(reasons)}")
        checked = f"Checked: every footprint and every run above was recomputed from {args.model}, and holds."
    document = why(plan, checked)  # JSON of a proof is the plan itself
    return to_markdown(document) if _format(args) == "markdown" else to_text(document)


def _listed(args: argparse.Namespace) -> str:
    """The records of devices, or one."""
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    plan = commands.add_parser("plan", help="plan an exported model and report on the plan")
    plan.add_argument("model", type=Path, metavar="MODEL.pt2", help="a program saved by torch.export.save")
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
        help="what comes after the fewest partitions; or time, on a device that --cache names",
    )  # fmt: skip
    plan.add_argument(
        "--max-slack", type=float, metavar="SHARE", help="how much larger the largest may be to cut fewer bytes: 0.05"
    )
    plan.add_argument(
        "--devices", metavar="N|NAMES", help="how many devices there are, or their names (cuda:0,cuda:1)"
    )
    plan.add_argument(
        "--on-shortage", choices=ON_SHORTAGE, default="balance", help="if there are fewer devices than needed"
    )
    plan.add_argument(
        "--oversize", choices=OVERSIZE, default="stream", help="if an operator is larger than the cache"
    )
    plan.add_argument("--order", choices=ORDERS, default="search", help="whether other orders of the nodes are tried")
    plan.add_argument("--footprint", choices=FOOTPRINTS, default="peak", help="of eager, or of code that is compiled")
    plan.add_argument("--replicate", action="store_true", help="devices that are left over take copies")

    report = commands.add_parser("report", help="report on a saved plan")
    report.add_argument(
        "plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`"
    )

    why = commands.add_parser("why", help="say in words why no plan is better than a saved one")
    why.add_argument("plan", type=Path, metavar="PLAN.json", help="a plan saved by `fx-partition plan --json`")
    why.add_argument(
        "--model", type=Path, metavar="MODEL.pt2", help="check every figure and both proofs against the model"
    )

    simulate = commands.add_parser("simulate", help="what a saved plan would take on a device, by its record")
    simulation.add_options(simulate)

    listing = commands.add_parser("devices", help="list what is known of devices, and what this machine has")
    listing.add_argument("name", nargs="?", metavar="NAME", help="one device: every figure with its source")

    measure = commands.add_parser("probe", help="measure the caches of this machine's CPU, for devices and auto")
    measure.add_argument("--seconds", type=float, default=10.0, help="about how long it may take (10)")
    measure.add_argument("--plot", type=Path, metavar="FILE", help="write a plot here too: FILE.png or FILE.svg")

    for command in (plan, report, why, simulate, listing, measure):
        formats = command.add_mutually_exclusive_group()
        if command is not why:
            formats.add_argument("--json", dest="format", action="store_const", const="json")
        formats.add_argument("--markdown", dest="format", action="store_const", const="markdown")
        command.add_argument(
            "-o", "--output", type=Path, metavar="FILE", help="write here; the suffix sets the format"
        )
    return parser


def _format(args: argparse.Namespace) -> str:
    suffix = args.output.suffix if args.output is not None else ""
    return args.format or _SUFFIXES.get(suffix, "text")


def _planned(args: argparse.Namespace) -> Plan:
    bind = dict(map(_binding, args.bind))
    cache, devices = _cache(args.cache), _devices(args.devices)
    if cache is None and devices is None:
        raise ValueError("say how large one device is (--cache 6MiB), or with --devices how many there are")
    return make_plan(
        _load_program(args.model), cache, bind=bind, algorithm=args.algorithm, objective=args.objective,
        max_slack=args.max_slack, order=args.order, footprint=args.footprint, devices=devices,
        on_shortage=args.on_shortage, oversize=args.oversize, replicate=args.replicate,
    )  # fmt: skip


def _cache(text: str | None) -> str | list[str] | None:
    if text is None:
        return None
    sizes = text.split(",")
    for size in sizes:
        parse_bytes(size, "--cache")
    return sizes[0] if len(sizes) == 1 else sizes


def _binding(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not (name and equals and size.isdecimal()):
        raise ValueError(f"--bind {text!r} is not DIM=SIZE; for example --bind input_ids.0=8")
    return name, int(size)


def _devices(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(f"device:{i}" for i in range(int(text))) if text.isdecimal() else tuple(text.split(","))
    if not names or not all(names):
        raise ValueError(f"--devices {text!r}: write how many there are (4) or their names (cuda:0,cuda:1)")
    return names


def _load_program(path: Path) -> torch.export.ExportedProgram:
    _check_file(path)
    try:
        with _quiet_logs():
            return torch.export.load(path)
    except Exception as error:  # a file that is no program fails in many ways, none of them documented
        raise ValueError(
            f"{path} is not an exported program that torch {torch.__version__} can load "
            f"({type(error).__name__}); save one with torch.export.save(program, {path.name!r})"
        ) from error


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """torch.export logs a traceback for every format that it tries and that a file is not in."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _read_plan(path: Path) -> Plan:
    _check_file(path)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no text, no JSON, or JSON that is no plan
        raise ValueError(
            f"{path}: {error}; save a plan with `fx-partition plan MODEL.pt2 --cache SIZE -o {path.name}`"
        ) from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; name a file that exists")
