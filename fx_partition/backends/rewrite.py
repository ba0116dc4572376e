"""What a stage's own graph is rewritten for: numbers that are known before, and the device on which it runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx


def write_in(graph: torch.fx.Graph, placeholder: torch.fx.Node, value: Any) -> None:
    """Put a constant where a placeholder was used, which goes."""
    for user in list(placeholder.users):
        arguments = (user.args, user.kwargs)
        user.args, user.kwargs = torch.fx.node.map_arg(arguments, lambda node: value if node is placeholder else node)
    graph.erase_node(placeholder)


def shares_memory(device: torch.device, home: torch.device) -> bool:
    """Whether tensors of both devices say the same device: all CPUs are one to torch."""
    return device == home or device.type == home.type == "cpu"


def retarget(graph: torch.fx.Graph, home: torch.device, device: torch.device) -> None:
    """Let a stage make its tensors on its own device: ``arange(..., device=home)`` becomes ``device=device``."""
    if shares_memory(device, home):
        return

    def swap(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) and argument == home else argument

    for node in graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, swap)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, swap)
