"""Cut a PyTorch graph into contiguous partitions that each fit one device's on-chip memory, and run them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .cost.price import Link, Overheads
from .cost.simulate import simulate
from .cost.simulation import Simulation
from .cost.speed import speed_of
from .hardware.budgets import usable_bytes
from .hardware.detect import detect
from .hardware.probe import Probe, probe
from .hardware.records import Device, device, devices
from .passes.api import plan, split, verify
from .passes.errors import OversizeError, PartitionError, PartitionWarning, PlanMismatchError
from .passes.live import compiled_graphs
from .passes.plan import Plan
from .passes.sizes import let_names_be_sizes
from .passes.speeds import let_names_have_speeds
from .report import report
from .report.probe_plot import plot_probe

if TYPE_CHECKING:
    from .backends.load_weights import load_stage_weights
    from .backends.pipeline import pipeline
    from .backends.stream import Pipeline
    from .backends.training.api import to_pipeline_stages
    from .backends.training.stages import PipelineStages

__version__ = version("fx-partition")

# What runs partitions imports inductor, which takes a while: only whoever asks for it waits.
_RUNTIMES = {
    "Pipeline": "stream",
    "PipelineStages": "training.stages",
    "load_stage_weights": "load_weights",
    "pipeline": "pipeline",
    "to_pipeline_stages": "training.api",
}


def __getattr__(name: str) -> Any:
    if name not in _RUNTIMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".backends.{_RUNTIMES[name]}", __name__), name)


let_names_be_sizes(usable_bytes)
let_names_have_speeds(speed_of)

__all__ = [
    "Device",
    "Link",
    "Overheads",
    "OversizeError",
    "PartitionError",
    "PartitionWarning",
    "Pipeline",
    "PipelineStages",
    "Plan",
    "PlanMismatchError",
    "Probe",
    "Simulation",
    "compiled_graphs",
    "detect",
    "device",
    "devices",
    "load_stage_weights",
    "pipeline",
    "plan",
    "plot_probe",
    "probe",
    "report",
    "simulate",
    "split",
    "to_pipeline_stages",
    "verify",
]
