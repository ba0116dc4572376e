"""Cut a PyTorch graph into contiguous partitions that each fit one device's on-chip memory, and run them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .common.errors import OversizeError, PartitionError, PartitionWarning, PlanMismatchError
from .fit.api import fit
from .fit.result import Fit
from .hardware.detect import detect
from .hardware.overheads import Link, Overheads
from .hardware.probe import Probe, probe
from .hardware.records import Device, device, devices
from .passes.api import plan, split, verify
from .passes.plan.plan import Plan
from .report import report
from .report.compiled_plans import compiled_graphs
from .report.probe_plot import plot_probe
from .simulator.result import Simulation
from .simulator.simulate import simulate

if TYPE_CHECKING:
    from .backends.inline.malloc_settings import keep_buffers
    from .backends.pipeline import pipeline
    from .backends.streaming.pipeline import Pipeline
    from .backends.training.api import to_pipeline_stages
    from .backends.training.pipeline_stages import PipelineStages
    from .backends.weights.load import load_stage_weights

__version__ = version("fx-partition")

# What runs partitions imports inductor, which takes a while: it is imported when it is first used.
_RUNTIMES = {
    "Pipeline": "streaming.pipeline",
    "PipelineStages": "training.pipeline_stages",
    "keep_buffers": "inline.malloc_settings",
    "load_stage_weights": "weights.load",
    "pipeline": "pipeline",
    "to_pipeline_stages": "training.api",
}


def __getattr__(name: str) -> Any:
    if name not in _RUNTIMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".backends.{_RUNTIMES[name]}", __name__), name)


__all__ = [
    "Device",
    "Fit",
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
    "fit",
    "keep_buffers",
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
