"""Cut a PyTorch graph into contiguous partitions that each fit one device's on-chip memory, and run them."""

from .passes.api import plan, split
from .passes.errors import OversizeError, PartitionError, PartitionWarning, PlanMismatchError
from .passes.plan import Plan
from .report import report

__all__ = [
    "OversizeError",
    "PartitionError",
    "PartitionWarning",
    "Plan",
    "PlanMismatchError",
    "plan",
    "report",
    "split",
]
