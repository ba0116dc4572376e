"""Look inside tensor subclasses, which keep their elements in other tensors: a quantised weight of torchao, a DTensor.

The sizes and the dtype of such a tensor are those that a model sees (float32 where int8 is held), and it has no memory
of its own: that is the memory of its *inner tensors*, which may be subclasses in turn. torch calls a subclass that
lists them (``__tensor_flatten__``) a traceable wrapper. A nested tensor is one too, and is not looked into here.

Before: ``weight``, a torchao ``Int8Tensor`` of 512 x 512 floats
After ``plain_tensors(weight)``: ``qdata`` (512 x 512 int8), ``scale`` (512 x 1 floats), ``zero_point`` (512 x 1 int8)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.fx

from .operators import OpOverload, schema_of


def is_subclass(tensor: torch.Tensor) -> bool:
    """Whether a tensor keeps its elements in inner tensors."""
    return _lists_inner(type(tensor)) and not tensor.is_nested


def any_subclass(types: Iterable[type]) -> bool:
    """Whether a dispatch mode is called for subclasses, by the types that torch passes to it.

    A mode that then returns NotImplemented sees the operators that the subclasses call on their inner tensors.
    """
    return any(map(_lists_inner, types))


def _lists_inner(kind: type) -> bool:
    return hasattr(kind, "__tensor_flatten__") and hasattr(kind, "__tensor_unflatten__")


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that have the memory of a tensor: the tensor itself unless it is a subclass."""
    if not is_subclass(tensor):
        return [tensor]
    return [plain for inner in _inner(tensor)[0].values() for plain in plain_tensors(inner)]


def rebuilt(tensor: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return a tensor of the same class, in which ``make`` has replaced each plain tensor."""
    if not is_subclass(tensor):
        return make(tensor)
    inner, context = _inner(tensor)
    made = {name: rebuilt(value, make) for name, value in inner.items()}
    kind: Any = type(tensor)
    result = kind.__tensor_unflatten__(made, context, tensor.shape, tensor.stride())
    assert isinstance(result, torch.Tensor)
    return result


def structure(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what a subclass is besides its plain tensors: classes, names and contexts. It may not hash."""
    if not is_subclass(tensor):
        return ()
    inner, context = _inner(tensor)
    return type(tensor), context, tuple((name, structure(value)) for name, value in inner.items())


def inner_access(node: torch.fx.Node, weights: Mapping[torch.fx.Node, torch.Tensor]) -> tuple[str, torch.Tensor] | None:
    """Return the name and the tensor that a node takes out of a weight; None for any other node.

    torch.export writes ``access_subclass_inner_tensor(weight, "qdata")`` at the top of its graph for each inner tensor.
    """
    if not isinstance(node.target, OpOverload) or schema_of(node.target).name != "export::access_subclass_inner_tensor":
        return None
    source, name = node.args
    if not isinstance(source, torch.fx.Node) or source not in weights:
        return None
    return str(name), getattr(weights[source], str(name))


def only_accessed(node: torch.fx.Node, weights: Mapping[torch.fx.Node, torch.Tensor]) -> bool:
    """Whether all that a graph does with a weight is to take its inner tensors, which are weights themselves."""
    return bool(node.users) and all(inner_access(user, weights) is not None for user in node.users)


def _inner(tensor: Any) -> tuple[dict[str, torch.Tensor], Any]:
    names, context = tensor.__tensor_flatten__()
    return {name: getattr(tensor, name) for name in names}, context
