"""What a leaf ATen kernel allocates while it runs and frees before it returns, beyond its outputs.

A rule covers the CPU kernel of PyTorch 2.13 and what it takes through torch's CPU allocator: that is what a profiler
sees. oneDNN's scratchpad goes through it too; MKL's does not, and is not counted. The rules are data, by operator:
`RULES` joins one table a family, each in a module of its own.

A known operator without a rule allocates nothing but its outputs.
"""

from __future__ import annotations

from typing import Any

import torch

from .workspace_attention import ATTENTION_RULES
from .workspace_call import Bytes, LeafCall, WorkspaceRule
from .workspace_conv import CONV_RULES
from .workspace_matmul import MATMUL_RULES
from .workspace_norm import NORM_RULES
from .workspace_order import ORDER_RULES
from .workspace_pointwise import REDUCE_RULES, pointwise

__all__ = ["POINTWISE_RULE", "RULES", "Bytes", "LeafCall", "WorkspaceRule", "is_known", "leaf_workspace"]

RULES: dict[str, WorkspaceRule] = {
    **CONV_RULES,
    **MATMUL_RULES,
    **ATTENTION_RULES,
    **NORM_RULES,
    **ORDER_RULES,
    **REDUCE_RULES,
}

# Operators that torch tags as pointwise and that have no rule of their own.
POINTWISE_RULE = WorkspaceRule(
    pointwise, "ATen/TensorIterator.cpp, compute_types: operands in the common dtype; Python numbers as tensors"
)

_KNOWN_NAMESPACES = frozenset({"aten", "prims", "prim"})


def leaf_workspace(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, threads: int) -> Bytes:
    """The bytes that ``func`` allocates beyond its outputs at its peak; 0 without a rule."""
    rule = RULES.get(func._schema.name)
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = POINTWISE_RULE
    return 0 if rule is None else rule.bytes(LeafCall(func, args, kwargs, out, threads))


def is_known(func: Any) -> bool:
    """Whether the workspace of ``func`` is known: it has a rule, or it is ATen's own and needs none."""
    return func.namespace in _KNOWN_NAMESPACES or func._schema.name in RULES
