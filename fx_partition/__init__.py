"""Cut a PyTorch graph into contiguous partitions that each fit one device's on-chip memory, and run them."""

from .backends.load_weights import load_stage_weights
from .backends.pipeline import pipeline
from .backends.stream import Pipeline
from .backends.training.api import to_pipeline_stages
from .backends.training.stages import PipelineStages
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
from .passes.plan import Plan
from .passes.sizes import let_names_be_sizes
from .passes.speeds import let_names_have_speeds
from .report import report
from .report.probe_plot import plot_probe

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
