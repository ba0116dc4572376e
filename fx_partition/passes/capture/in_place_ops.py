"""Which calls write their first argument and return it, told by name; `op_effects` sees it in those that run on fakes.

In place are ``relu_``, ``iadd`` (what ``x += y`` is traced as), ``__iadd__`` and ``setitem``, which returns nothing.
Some functions of the module operator only end like that, as their names are words of Python: ``a & b`` is traced as
``and_``, and makes a new tensor.
"""

from __future__ import annotations

import operator

import torch.fx

# Without imatmul: tensors have none, and Python takes ``x @ y`` for it.
_NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift", "irshift")
_OPERATORS = frozenset(getattr(operator, name) for name in _NAMES)
_METHODS = frozenset(f"__{name}__" for name in _NAMES)


def is_in_place(node: torch.fx.Node) -> bool:
    """Whether a call writes its first argument, whatever else it is given, and returns it.

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
    """The name of a function or a method, as Python spells it."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))
