"""What a leaf ATen kernel allocates while it runs and frees before it returns, beyond its outputs.

A rule covers the CPU kernel of PyTorch 2.13 and what it takes through torch's CPU allocator: that is what a profiler
sees. oneDNN's scratchpad goes through it too; MKL's does not, and is not counted. The rules are data, by operator:
`RULES` joins one table a family, each in a module of its own.

A known operator without a rule allocates nothing but its outputs.
"""

from __future__ import annotations

from typing import Any

from .workspace_call import Bytes, LeafCall, WorkspaceRule
from .workspace_conv import CONV_RULES

__all__ = ["RULES", "Bytes", "LeafCall", "WorkspaceRule", "is_known", "leaf_workspace"]

RULES: dict[str, WorkspaceRule] = {**CONV_RULES}

_KNOWN_NAMESPACES = frozenset({"aten", "prims", "prim"})


def leaf_workspace(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, threads: int) -> Bytes:
    """The bytes that ``func`` allocates beyond its outputs at its peak; 0 without a rule."""
    rule = RULES.get(func._schema.name)
    return 0 if rule is None else rule.bytes(LeafCall(func, args, kwargs, out, threads))


def is_known(func: Any) -> bool:
    """Whether the workspace of ``func`` is known: it has a rule, or it is ATen's own and needs none."""
    return func.namespace in _KNOWN_NAMESPACES or func._schema.name in RULES
