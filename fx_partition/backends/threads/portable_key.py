"""A stage's key as text that means the same in every process, so that compiled code on disk can be named after it.

`stage_key.stage_key` makes the key, and this writes it: nothing of a stage is looked at here. An operator is written by
its name and schema, a function by the name under which importing finds that very object. What those names stand for is
torch's and Python's, whose versions are written beside the key; an object of anyone else is code that may change under
its name, and has none here.

Before: ``((torch.fx.Node, 0), IdentityKey(aten.relu.default), torch.float32)``
After:  ``tuple[tuple[type torch.fx.node.Node; int 0]; operator aten::relu(Tensor self) -> Tensor; torch.float32]``
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from typing import Any

import sympy
import torch

from fx_partition.passes.capture.operators import HigherOrderOperator, OpOverload, schema_of

from ..lowering.boundary_strides import in_memory_of_its_own, in_order
from ..lowering.stage_key import PLAIN, IdentityKey

# Packages whose versions are written beside a key.
_VERSIONED = frozenset({"_operator", "builtins", "math", "operator", "sympy", "torch"})
# Libraries of operators that are torch's own.
_OWN_LIBRARIES = frozenset({"aten", "inductor", "mkldnn", "onednn", "prim", "prims", "quantized"})
# Higher-order operators all of whose operands are in the graph; others look things up in tables of their process.
_HIGHER_ORDER = frozenset({"cond", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"})


class NotPortableError(Exception):
    """A key holds what has no name that is the same in another process."""


def to_portable(value: Any) -> str:
    """The text of a key, or of settings: numbers, strings, types, sizes, and containers of them.

    Raises:
        NotPortableError: see there.

    Example::

        >>> to_portable((1, "a", [torch.float32]))
        "tuple[int 1; str 'a'; list[torch.float32]]"
    """
    kind = type(value)
    if kind is IdentityKey:
        return _name(value.value)
    if kind in (tuple, list):
        return _joined(kind, map(to_portable, value))
    if kind in (set, frozenset):
        return _joined(kind, sorted(map(to_portable, value)))
    if kind is dict:
        return _joined(kind, (f"{to_portable(key)}: {to_portable(item)}" for key, item in value.items()))
    if kind is float:
        return f"float {value.hex()}"
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.device):
        return repr(value)
    if kind in PLAIN:
        return f"{kind.__name__} {value!r}"
    if isinstance(value, sympy.Basic):
        return sympy.srepr(value)  # type: ignore[no-any-return]
    if isinstance(value, type):
        name = f"{value.__module__}.{value.__qualname__}"
        return f"type {name if value in PLAIN else _imported(value, name)}"  # NoneType cannot be imported by its name
    raise NotPortableError(f"{value!r} has no name")


def _joined(kind: type, texts: Iterable[str]) -> str:
    return f"{kind.__name__}[{'; '.join(texts)}]"


def _name(thing: Any) -> str:
    if thing in (in_order, in_memory_of_its_own):
        return f"function {thing.__name__}"  # this project's; `code_cache` has its version
    if isinstance(thing, OpOverload):
        return f"operator {_operator(thing)}"
    if isinstance(thing, HigherOrderOperator):
        name = str(thing)
        if name in _HIGHER_ORDER and getattr(torch.ops.higher_order, name) is thing:
            return f"higher-order operator {name}"
        raise NotPortableError(f"{thing} is not known to take its operands from the graph alone")
    if not callable(thing) or isinstance(thing, torch.nn.Module):
        raise NotPortableError(f"a {type(thing).__name__} has no name")
    name = f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', None)}"
    try:
        return f"function {_imported(thing, name)}"
    except NotPortableError:
        # Functions of torch in C++ do not know where they are imported from; torch does.
        return f"function {_imported(thing, str(torch.overrides.resolve_name(thing)))}"


def _operator(op: OpOverload) -> str:
    library, name = schema_of(op).name.split("::")
    packet = getattr(getattr(torch.ops, library), name)
    if getattr(packet, schema_of(op).overload_name or "default", None) is not op:
        raise NotPortableError(f"{op} is not the operator that torch.ops has under this name")
    if library not in _OWN_LIBRARIES and op.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        raise NotPortableError(f"{op} is compiled from what it calls, and its registration may change")
    return str(schema_of(op))


def _imported(thing: Any, name: str) -> str:
    """The name, if importing it gives the thing."""
    try:
        found = pkgutil.resolve_name(name) if name.split(".")[0] in _VERSIONED else None
    except (AttributeError, ImportError, ValueError):
        found = None
    if found is not thing:
        raise NotPortableError(f"{thing!r} is not what {name} is everywhere")
    return name
