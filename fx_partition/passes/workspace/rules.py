"""Find the memory that a leaf ATen kernel allocates while it runs and frees before it returns, beyond its outputs.

A rule covers the CPU kernel of PyTorch 2.13, and the memory from torch's CPU allocator, which a profiler sees. oneDNN's
scratchpad comes from it too; MKL's does not, and is not counted. `RULES` joins the tables of all families of operators,
each of which has a module.

A known operator without a rule allocates nothing but its outputs.

The scratch of a kernel of oneDNN or LAPACK depends on the processor too (``WorkspaceRule.varies``). There the rule is
an estimate, and `leaf_workspace` returns the call as well, so that it can be measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..capture.op_call import Bytes, LeafCall
from ..capture.operators import schema_of
from ..capture.symbolic_sizes import Size, to_expr
from .attention import ATTENTION_RULES
from .convolution import CONV_RULES
from .kernel_call import KernelCall, kernel_call
from .matmul import MATMUL_RULES
from .normalization import NORM_RULES
from .pointwise import REDUCE_RULES, pointwise
from .sort_and_index import ORDER_RULES
from .workspace_rule import WorkspaceRule

__all__ = ["POINTWISE_RULE", "RULES", "Bytes", "LeafCall", "Workspace", "WorkspaceRule", "is_known", "leaf_workspace"]

RULES: dict[str, WorkspaceRule] = {
    **CONV_RULES,
    **MATMUL_RULES,
    **ATTENTION_RULES,
    **NORM_RULES,
    **ORDER_RULES,
    **REDUCE_RULES,
}

# The rule of operators that torch tags as pointwise and that have no entry in `RULES`.
POINTWISE_RULE = WorkspaceRule(
    pointwise, "ATen/TensorIterator.cpp, compute_types: operands in the common dtype; Python numbers as tensors"
)

_KNOWN_NAMESPACES = frozenset({"aten", "prims", "prim"})


class Workspace(NamedTuple):
    """The memory that a leaf operator allocates beyond its outputs at its peak.

    Attributes:
        bytes: the result of its rule; 0 without a rule.
        varies: whether the bytes are an estimate, as they depend on the processor.
        kernel: the call to measure; None if there is no need, or if it cannot be measured (another device's tensors).
    """

    bytes: Size
    varies: bool
    kernel: KernelCall | None


def leaf_workspace(call: LeafCall, results: Size) -> Workspace:
    """Return the workspace of a call that returns ``results`` bytes in new memory."""
    rule = RULES.get(schema_of(call.func).name)
    if rule is None and torch.Tag.pointwise in call.func.tags:
        rule = POINTWISE_RULE
    if rule is None:
        return Workspace(0, False, None)
    size, varies = to_expr(rule.bytes(call)), rule.varies(call)
    return Workspace(size, varies, kernel_call(call, rule, size, results) if varies else None)


def is_known(func: Any) -> bool:
    """Whether the workspace of ``func`` is known: it has a rule, or it is an operator of ATen that needs none."""
    return func.namespace in _KNOWN_NAMESPACES or schema_of(func).name in RULES
