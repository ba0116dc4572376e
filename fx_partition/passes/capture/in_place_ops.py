"""Recognise by name the calls that write their first argument and return it; `op_effects` sees it by running them.

Such calls are ``relu_``, ``iadd`` (the trace of ``x += y``) and ``__iadd__``; not ``setitem``, which returns nothing.
Some functions of the module operator end in an underscore only because their names are words of Python: ``a & b`` is
traced as ``and_``, and makes a new tensor.
"""

from __future__ import annotations

import operator

import torch.fx

# imatmul is absent: tensors have none, so Python computes ``x @= y`` as ``x = x @ y``.
_NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift", "irshift")
_OPERATORS = frozenset(getattr(operator, name) for name in _NAMES)
_METHODS = frozenset(f"__{name}__" for name in _NAMES)


def is_in_place(node: torch.fx.Node) -> bool:
    """Whether a call always writes its first argument and returns it.

    Example::

        >>> graph = torch.fx.symbolic_trace(lambda a, b: (a & b).add_(1)).graph
        >>> [node.name for node in graph.nodes if is_in_place(node)]
        ['add_']
    """
    if node.op not in ("call_function", "call_method"):
        return False
    if getattr(node.target, "__module__", "") == operator.add.__module__:
        return node.target in _OPERATORS
    name = called(node)
    return name in _METHODS or (name.endswith("_") and not name.endswith("__"))


def called(node: torch.fx.Node) -> str:
    """Return the name of the function or method that a node calls, as Python spells it."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))
