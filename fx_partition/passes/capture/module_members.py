"""List the parameters, buffers and children of a module, and hand them over to another module.

A graph may read further attributes of its module, which are not part of its state: constants of ``forward`` that
torch.export lifts (``lifted_tensor_0``), a tensor that is a plain attribute (``self.scale = torch.ones(8)``), an
object. GraphModule makes a buffer of each tensor among them, and would so add it to ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.fx
from torch import nn


def members(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, member) of what a module itself holds: its parameters, buffers and children, but not theirs.

    A member of two names comes twice, as both are keys of ``state_dict()``.
    """
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)
    for name, child in module.named_modules(remove_duplicate=False):
        if name and "." not in name:
            yield name, child


def all_tensors(module: nn.Module, *, every_name: bool = False) -> dict[str, torch.Tensor]:
    """Return all parameters, then all buffers, of a module and its children, by name.

    Args:
        every_name: whether a tensor of several names (a tied weight) comes under each of them, or under the first.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.BatchNorm1d(4, affine=False))
        >>> [*all_tensors(model)]
        ['0.weight', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=not every_name))
    found |= module.named_buffers(remove_duplicate=not every_name)
    return found


def constants(gm: torch.fx.GraphModule) -> dict[str, Any]:
    """Return, by name, the attributes of a graph's module that the graph reads and that are not `members`."""
    own = {name for name, _ in members(gm)}
    read = (str(node.target) for node in gm.graph.find_nodes(op="get_attr"))
    found = {name: getattr(gm, name) for name in read if "." not in name and name not in own}
    return {name: value for name, value in found.items() if not isinstance(value, nn.Module)}


def set_constants(target: nn.Module, values: Mapping[str, Any]) -> None:
    """Set plain attributes of ``target``; one replaces a buffer of its name."""
    for name, value in values.items():
        target._buffers.pop(name, None)
        target._non_persistent_buffers_set.discard(name)
        setattr(target, name, value)


def hand_over(source: nn.Module, target: nn.Module, own: Callable[[Any], Any] = lambda member: member) -> None:
    """Add the members and constants of ``source`` to ``target``, each as ``own`` returns it.

    A buffer is persistent in ``target`` if it is in ``source``.
    """
    persistent = source.state_dict().keys()
    for name, member in list(members(source)):
        mine = own(member)
        if isinstance(mine, nn.Module):
            target.add_module(name, mine)
        elif isinstance(mine, nn.Parameter):
            target.register_parameter(name, mine)
        else:
            target.register_buffer(name, mine, persistent=name in persistent)
    if isinstance(source, torch.fx.GraphModule):
        set_constants(target, {name: own(value) for name, value in constants(source).items()})
