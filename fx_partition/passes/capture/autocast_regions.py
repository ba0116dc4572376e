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
partition sets its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch.fx


def is_region_handle(node: torch.fx.Node) -> bool:
    """Whether a node's value is what leaves an autocast region again; it never crosses a boundary."""
    return getattr(node.target, "__name__", "") == "_enter_autocast"


class Regions:
    """The modes that are in force while a graph's nodes pass by in order."""

    def __init__(self) -> None:
        self.open: list[torch.fx.Node] = []  # _enter_autocast nodes, outermost first
        self.grad: torch.fx.Node | None = None  # the last _set_grad_enabled

    def pass_node(self, node: torch.fx.Node) -> None:
        name = getattr(node.target, "__name__", "")
        if name == "_enter_autocast":
            self.open.append(node)
        elif name == "_exit_autocast":
            self.open = [enter for enter in self.open if enter is not node.args[0]]
        elif name == "_set_grad_enabled":
            self.grad = node

    def enter(self, graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
        """Write the nodes that enter the modes in force; returns {original: copy}."""
        reopened = {enter: graph.node_copy(enter) for enter in self.open}
        if self.grad is not None:
            graph.node_copy(self.grad)
        return reopened

    def leave(self, graph: torch.fx.Graph, copies: dict[torch.fx.Node, torch.fx.Node]) -> None:
        """Write the nodes that leave the autocast regions still open; ``copies`` maps enter nodes to their copies."""
        for enter in reversed(self.open):
            exit_node = _exit_of(enter)
            graph.create_node("call_function", exit_node.target, (copies[enter],))


@contextlib.contextmanager
def left_regions(values: Mapping[torch.fx.Node, Any]) -> Iterator[None]:
    """Leave the autocast regions that a run of a graph has entered, should it fail in one.

    Args:
        values: what each node that ran returned, in order; filled while the context is open.
    """
    try:
        yield
    except BaseException:
        for node, value in reversed(list(values.items())):
            if is_region_handle(node) and (exit_node := _exit_of(node)) not in values:
                exit_node.target(value)  # type: ignore[operator]  # a call_function
        raise


def _exit_of(enter: torch.fx.Node) -> torch.fx.Node:
    """The graph's own exit node, whose function the copies call: it has no public name."""
    for user in enter.users:
        if getattr(user.target, "__name__", "") == "_exit_autocast":
            return user
    raise AssertionError(f"{enter.name} is never left")
