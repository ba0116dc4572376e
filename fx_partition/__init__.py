"""Cut a PyTorch graph into contiguous partitions that each fit one device's on-chip memory, and run them."""

from .backends.pipeline import pipeline
from .backends.stream import Pipeline
from .passes.api import plan, split
from .passes.errors import OversizeError, PartitionError, PartitionWarning, PlanMismatchError
from .passes.plan import Plan
from .report import report

__all__ = [
    "OversizeError",
    "PartitionError",
    "PartitionWarning",
    "Pipeline",
    "Plan",
    "PlanMismatchError",
    "pipeline",
    "plan",
    "report",
    "split",
]
