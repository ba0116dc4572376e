"""Write a stage's key as text that means the same in every process, to name compiled code on disk.

`stage_key.stage_key` makes the key; nothing here looks at a stage. An operator is written as its name and schema, a
function as the name under which an import finds that very object. Only names of torch, sympy and Python are accepted:
their versions are written in addition to the key. The code behind any other name may change while the name stays.

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

# Packages whose versions are written in addition to a key.
_VERSIONED = frozenset({"_operator", "builtins", "math", "operator", "sympy", "torch"})
# Libraries of operators that are torch's own.
_OWN_LIBRARIES = frozenset({"aten", "inductor", "mkldnn", "onednn", "prim", "prims", "quantized"})
# Higher-order operators whose operands are all in the graph; others look up tables of their process.
_HIGHER_ORDER = frozenset({"cond", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"})


class NotPortableError(Exception):
    """A key holds an object without a name that is the same in another process."""


def to_portable(value: Any) -> str:
    """Return the text of a key, or of settings: numbers, strings, types, sizes, and containers of them.

    Raises:
        NotPortableError: an object in the key has no portable name.

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
        return f"type {name if value in PLAIN else _imported(value, name)}"  # no import finds NoneType
    raise NotPortableError(f"{value!r} has no name")


def _joined(kind: type, texts: Iterable[str]) -> str:
    return f"{kind.__name__}[{'; '.join(texts)}]"


def _name(thing: Any) -> str:
    if thing in (in_order, in_memory_of_its_own):
        return f"function {thing.__name__}"  # of this project: `code_cache._SCHEME` is its version
    if isinstance(thing, OpOverload):
        return f"operator {_operator(thing)}"
    if isinstance(thing, HigherOrderOperator):
        name = str(thing)
        if name in _HIGHER_ORDER and getattr(torch.ops.higher_order, name) is thing:
            return f"higher-order operator {name}"
        raise NotPortableError(f"{thing} may read more than its operands in the graph")
    if not callable(thing) or isinstance(thing, torch.nn.Module):
        raise NotPortableError(f"a {type(thing).__name__} has no name")
    name = f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', None)}"
    try:
        return f"function {_imported(thing, name)}"
    except NotPortableError:
        # C++ functions of torch do not know their module; torch.overrides does.
        return f"function {_imported(thing, str(torch.overrides.resolve_name(thing)))}"


def _operator(op: OpOverload) -> str:
    library, name = schema_of(op).name.split("::")
    packet = getattr(getattr(torch.ops, library), name)
    if getattr(packet, schema_of(op).overload_name or "default", None) is not op:
        raise NotPortableError(f"torch.ops has another operator under the name of {op}")
    if library not in _OWN_LIBRARIES and op.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        raise NotPortableError(f"{op} is compiled from its Python body, which may change under its name")
    return str(schema_of(op))


def _imported(thing: Any, name: str) -> str:
    """Return the name, if importing it finds the thing."""
    try:
        found = pkgutil.resolve_name(name) if name.split(".")[0] in _VERSIONED else None
    except (AttributeError, ImportError, ValueError):
        found = None
    if found is not thing:
        raise NotPortableError(f"another process may find another object than {thing!r} under the name {name}")
    return name
