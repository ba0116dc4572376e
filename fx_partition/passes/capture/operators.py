"""Access to private names of torch's operators: their classes, their schemas, and the storage that a tensor shows.

Tried on torch 2.11.0, 2.13.0 and 2.14.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

__all__ = ["HigherOrderOperator", "OpOverload", "OpOverloadPacket", "overload_of", "schema_of", "storage_number"]


def schema_of(operator: Any) -> Any:
    """Return the schema of an operator: its name, arguments and results, and which of them alias."""
    return operator._schema


def overload_of(operator: Any) -> str:
    """Return the name of an operator's overload, "default" for the one without a name."""
    return str(operator._overloadname)


def storage_number(tensor: torch.Tensor) -> int:
    """Return a number that is equal for tensors over one storage, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)
