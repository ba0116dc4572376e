"""The command `fx-partition fit MODEL --devices 2x80GiB`: its options and its output."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_files import load_program
from .common.units import parse_count
from .engines.registry import engine_text
from .fit.api import fit
from .fit.precision import QUANTISED
from .passes.constraints.module_boundaries import MODULES, NODES
from .report.output import written

_MOST = 2**31


def add_options(parser: argparse.ArgumentParser, trust: str) -> None:
    """Add the options of the command that not all commands have.

    Args:
        parser: the command's parser.
        trust: the warning about model files, for the help.
    """
    parser.add_argument(
        "model", type=Path, metavar="MODEL",
        help=f"a config.json of Hugging Face, a folder that has one, or a program saved by torch.export.save; {trust}",
    )  # fmt: skip
    parser.add_argument(
        "--devices", required=True, metavar="DEVICES",
        help="2x80GiB; 24GiB,24GiB,16GiB in order; 80GiB for as many as needed; or 2 for the smallest size",
    )  # fmt: skip
    parser.add_argument("--margin", default="0%", help="the share of each device that stays empty, such as 10%% (0%%)")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32, for a configuration (its own)")
    parser.add_argument("--batch", metavar="N", help="number of sequences, for a configuration (1)")
    parser.add_argument("--length", metavar="N", help="tokens of each sequence, for a configuration (at most 4096)")
    parser.add_argument(
        "--weights", default="", metavar="NAME[,NAME...]",
        help=f"precisions to try, the model's own among them: bf16,{','.join(QUANTISED)}",
    )  # fmt: skip
    add_boundaries(parser, MODULES)


def add_boundaries(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option ``--boundaries``, which `boundaries_of` reads."""
    parser.add_argument(
        "--boundaries", default=default, metavar="modules|nodes|NAME[,NAME...]",
        help="where the model may be cut: between modules (those of a list stay whole), between nodes, or between "
        f"modules of which those of these classes and paths stay whole ({default})",
    )  # fmt: skip


def boundaries_of(text: str) -> str | list[str]:
    """Return the value of ``--boundaries`` as `plan` and `fit` take it."""
    return text if text in (MODULES, NODES) else text.split(",")


def answer(args: argparse.Namespace, format: str) -> str:
    """Return the output of the command, as "text", "markdown" or "json".

    Raises:
        ValueError: the model cannot be read or captured, or an option cannot be read.
    """
    sizes: dict[str, Any] = {
        name: parse_count(text, f"--{name}", _MOST)
        for name in ("batch", "length")
        if (text := getattr(args, name)) is not None
    }
    options: dict[str, Any] = {
        "devices": args.devices,
        "margin": args.margin,
        "weights": [name for name in args.weights.split(",") if name],
        "boundaries": boundaries_of(args.boundaries),
    }
    if args.model.suffix == ".pt2":
        if given := [f"--{name}" for name in ("dtype", "batch", "length") if getattr(args, name) is not None]:
            raise ValueError(f"{' and '.join(given)} are for a configuration; a program has its own sizes and dtypes")
        found = fit(load_program(args.model, args.modules), **options)
    else:
        found = fit(args.model, dtype=args.dtype, **sizes, **options)
    if args.engine is not None:
        return engine_text(found.to(args.engine))
    return written(found.document, found.to_json, format)
