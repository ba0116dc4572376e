"""What a module holds itself: parameters, buffers and children, each under every name that it has there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


def members(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, member) of each; one that has two names comes twice, as both are keys of ``state_dict()``."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)
    for name, child in module.named_modules(remove_duplicate=False):
        if name and "." not in name:
            yield name, child


def hand_over(source: nn.Module, target: nn.Module, own: Callable[[Any], Any] = lambda member: member) -> None:
    """Give ``target`` the members of ``source``, or what ``own`` makes of each; buffers stay (not) persistent."""
    persistent = source.state_dict().keys()
    for name, member in list(members(source)):
        mine = own(member)
        if isinstance(mine, nn.Module):
            target.add_module(name, mine)
        elif isinstance(mine, nn.Parameter):
            target.register_parameter(name, mine)
        else:
            target.register_buffer(name, mine, persistent=name in persistent)
