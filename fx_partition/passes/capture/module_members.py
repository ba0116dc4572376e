"""What a module holds itself: parameters, buffers and children, each under every name that it has there.

A graph may read further attributes of its module, which are no part of the state: constants of ``forward`` that
torch.export lifts (``lifted_tensor_0``), a tensor that is a plain attribute (``self.scale = torch.ones(8)``), an
object. GraphModule makes a buffer of each tensor among them, which ``state_dict()`` would have then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.fx
from torch import nn


def members(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, member) of each; one that has two names comes twice, as both are keys of ``state_dict()``."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)
    for name, child in module.named_modules(remove_duplicate=False):
        if name and "." not in name:
            yield name, child


def constants(gm: torch.fx.GraphModule) -> dict[str, Any]:
    """The attributes of a graph's own module that the graph reads and that are no `members`, by name."""
    own = {name for name, _ in members(gm)}
    read = (str(node.target) for node in gm.graph.find_nodes(op="get_attr"))
    found = {name: getattr(gm, name) for name in read if "." not in name and name not in own}
    return {name: value for name, value in found.items() if not isinstance(value, nn.Module)}


def set_constants(target: nn.Module, values: Mapping[str, Any]) -> None:
    """Give ``target`` plain attributes, also where it has a buffer of the name."""
    for name, value in values.items():
        target._buffers.pop(name, None)
        target._non_persistent_buffers_set.discard(name)
        setattr(target, name, value)


def hand_over(source: nn.Module, target: nn.Module, own: Callable[[Any], Any] = lambda member: member) -> None:
    """Give ``target`` the members of ``source`` and its constants, or what ``own`` makes of each.

    Buffers stay (not) persistent.
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
