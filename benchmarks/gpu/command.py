"""What the three commands share: their options, the device, and what ran where."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config

from .results import Results


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all commands have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")), metavar="DIR",
        help="where to write the JSON; default: $OUT, else build/gpu",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="go through all sections at the smallest sizes; no figure means anything"
    )
    return parser


def begin(name: str, options: argparse.Namespace) -> Results | None:
    """Return the results to fill, with torch set up on the first GPU; None, and a line, where there is no GPU."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return None
    torch.cuda.set_device(0)
    torch.manual_seed(0)
    if options.dry_run:  # on a clock that stands still, inductor would time its choices for minutes
        torch._inductor.config.triton.autotune_pointwise = False
    return Results(name, options.out, options.dry_run, environment())


def environment() -> dict[str, Any]:
    """Return the device, its L2 and the versions of everything that takes part."""
    properties = torch.cuda.get_device_properties(0)
    found = {
        "device": properties.name,
        "devices": torch.cuda.device_count(),
        "l2_bytes": l2_bytes(),
        "multiprocessors": properties.multi_processor_count,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver_version(),
    }
    for package in ("triton", "cuda.bindings"):
        found[package] = version_of(package)
    return found


def l2_bytes() -> int:
    """Return the bytes of the first GPU's L2, as the driver states them."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def version_of(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        module = __import__(package, fromlist=["__version__"])
    except ImportError:
        return None
    return str(getattr(module, "__version__", "?"))


def driver_version() -> str:
    """Return the version that /proc reports; "?" if it reports none."""
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "?")
