"""Autocast and grad-mode regions: nodes that change a mode for all nodes after them.

A partition that begins inside a region must enter it again, and leave it when it ends::

    before                                after
    enter = _enter_autocast("cpu", bf16)  partition_0: enter = _enter_autocast("cpu", bf16)
    linear = linear(x, w)                              linear = linear(x, w)
    linear_1 = linear(linear, v)                       _exit_autocast(enter)
    _exit_autocast(enter)                 partition_1: enter = _enter_autocast("cpu", bf16)
                                                       linear_1 = linear(linear, v)
                                                       _exit_autocast(enter)

Grad mode is set again where a partition begins in a mode that the graph has set; it needs no restoring, as the next
partition sets its own. No other module names the functions that tracers write for these regions, but for
`whole_regions`, which has the modes that no partition can enter again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.fx

_ENTER, _EXIT, _SET_GRAD = "_enter_autocast", "_exit_autocast", "_set_grad_enabled"


def is_region_handle(node: torch.fx.Node) -> bool:
    """Whether a node enters an autocast region; its value is the handle to leave it, and never crosses a boundary."""
    return _name(node) == _ENTER


def leaves_autocast(node: torch.fx.Node) -> bool:
    """Whether a node leaves an autocast region."""
    return _name(node) == _EXIT


def sets_grad_mode(node: torch.fx.Node) -> bool:
    """Whether a node sets grad mode for the nodes after it."""
    return _name(node) == _SET_GRAD


def names_autocast_device(node: torch.fx.Node) -> bool:
    """Whether a node's first argument is the device type of an autocast region, which it enters or runs a body in."""
    return is_region_handle(node) or _name(node) == "wrap_with_autocast"


def _name(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", ""))


@contextlib.contextmanager
def under_autocast(entered: Iterable[torch.fx.Node]) -> Iterator[None]:
    """Run under the autocast regions that nodes of a graph enter, outermost first.

    Example: with ``enter = _enter_autocast("cpu", torch.bfloat16, True, False)`` it is
    ``torch.amp.autocast("cpu", torch.bfloat16, True, False)``.
    """
    with contextlib.ExitStack() as stack:
        for enter in entered:
            arguments: tuple[Any, ...] = enter.args
            stack.enter_context(torch.amp.autocast(*arguments))
        yield


class Regions:
    """The modes in force at a place of a graph, while its nodes pass by in order."""

    def __init__(self) -> None:
        self.open: list[torch.fx.Node] = []  # _enter_autocast nodes, outermost first
        self.grad: torch.fx.Node | None = None  # the last _set_grad_enabled

    def pass_node(self, node: torch.fx.Node) -> None:
        """Go on behind ``node``."""
        if _name(node) not in (_ENTER, _EXIT, _SET_GRAD):
            return
        if is_region_handle(node):
            self.open.append(node)
        elif leaves_autocast(node):
            self.open = [enter for enter in self.open if enter is not node.args[0]]
        elif sets_grad_mode(node):
            self.grad = node

    def enter(self, graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
        """Write the nodes that enter the modes in force; return {original: copy} of the autocast ones."""
        reopened = {enter: graph.node_copy(enter) for enter in self.open}
        if self.grad is not None:
            graph.node_copy(self.grad)
        return reopened

    def leave(self, graph: torch.fx.Graph, copies: dict[torch.fx.Node, torch.fx.Node]) -> None:
        """Write the nodes that leave the autocast regions still open; ``copies`` maps enter nodes to their copies."""
        for enter in reversed(self.open):
            exit_node = _exit_of(enter)
            graph.create_node("call_function", exit_node.target, (copies[enter],))


def _exit_of(enter: torch.fx.Node) -> torch.fx.Node:
    """Return the graph's own exit node: the copies call its function, which has no public name."""
    for user in enter.users:
        if leaves_autocast(user):
            return user
    raise AssertionError(f"{enter.name} is never left")
