"""Rewrite the graph of a stage: for numbers that are known, and for the device on which it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch.fx.operator_schemas import get_signature_for_torch_op
from torch.utils import _pytree as pytree

from fx_partition.passes.capture.autocast_regions import names_autocast_device
from fx_partition.passes.capture.captured_graph import value_of

from ..devices.home_device import place


def write_in(graph: torch.fx.Graph, placeholder: torch.fx.Node, value: Any) -> None:
    """Replace a placeholder by a constant, and erase it."""
    for user in list(placeholder.users):
        arguments = (user.args, user.kwargs)
        user.args, user.kwargs = torch.fx.node.map_arg(arguments, lambda node: value if node is placeholder else node)
    graph.erase_node(placeholder)


def shares_memory(device: torch.device, home: torch.device) -> bool:
    """Return whether tensors on both devices are in the same memory: torch takes all CPUs for one."""
    return device == home or device.type == home.type == "cpu"


def retarget(module: torch.fx.GraphModule, home: torch.device, device: torch.device) -> None:
    """Retarget the graph of a stage and the bodies of its higher-order operators (see `retarget_graph`)."""
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            retarget_graph(part.graph, home, device)
            part.recompile()


def retarget_graph(graph: torch.fx.Graph, home: torch.device, device: torch.device) -> None:
    """Let a graph make and move its tensors on the devices of `home_device.place`, however the graph names devices.

    Before, for a model on cuda:0:          After, on cuda:1:
        torch.arange(8, device="cuda:0")        torch.arange(8, device=device(type='cuda', index=1))
        mask.cuda()                             mask.to(device(type='cuda', index=1))
        torch.ones(8)                           torch.ones(8), as it is on the CPU on purpose
    Before, for a model on the CPU:         After, on cuda:1:
        torch.ones(8)                           torch.ones(8, device=device(type='cuda', index=1))

    A copy between two devices that become one stays a copy, as either side may be written.
    """
    _Retargeting(home, device).run(graph)


# Operators that return their input itself where its device and dtype are right already.
_MOVES = {"to", "cuda", "cpu", "type", torch.as_tensor, torch.asarray, torch.ops.aten.to}


class _Retargeting:
    def __init__(self, home: torch.device, device: torch.device) -> None:
        self._home, self._device = home, device

    def run(self, graph: torch.fx.Graph) -> None:
        if self._home.type == self._device.type == "cpu":
            return
        for node in list(graph.nodes):
            if node.op in ("call_function", "call_method"):
                self._swap_devices(node)
                self._swap_text(node)
                self._keep_copy(node)
                self._make_here(node)

    def _place(self, device: torch.device) -> torch.device:
        """Return `home_device.place`, or ``device`` itself where both are the same memory."""
        placed = place(device, self._home, self._device)
        return device if shares_memory(placed, device) else placed

    def _swap_devices(self, node: torch.fx.Node) -> None:
        def swap(argument: Any) -> Any:
            return self._place(argument) if isinstance(argument, torch.device) else argument

        node.args = torch.fx.node.map_aggregate(node.args, swap)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, swap)

    def _swap_text(self, node: torch.fx.Node) -> None:
        """Swap devices that are texts or numbers among the arguments, or that the operator's name says."""
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": self._named(node.kwargs["device"])}
        if node.op == "call_method":
            if node.target == "to" and len(node.args) > 1:
                node.args = (node.args[0], self._named(node.args[1]), *node.args[2:])
            elif node.target in ("cuda", "cpu"):
                self._write_to(node, torch.device(str(node.target)))
        elif node.target is torch.as_tensor and len(node.args) > 2:
            node.args, node.kwargs = node.args[:2], {**node.kwargs, "device": self._named(node.args[2])}
        elif names_autocast_device(node) and node.args and node.args[0] == self._home.type:
            node.args = (self._device.type, *node.args[1:])

    def _named(self, argument: Any) -> Any:
        if isinstance(argument, bool) or not isinstance(argument, (str, int)):
            return argument
        named = torch.device("cuda", argument) if isinstance(argument, int) else torch.device(argument)
        moved = self._place(named)
        return argument if moved == named else moved

    def _write_to(self, node: torch.fx.Node, named: torch.device) -> None:
        """Write ``cuda(...)`` and ``cpu(...)`` as ``to(device, ...)``."""
        moved = self._place(named)
        if moved == named:
            return
        names = ("device", "non_blocking", "memory_format") if named.type == "cuda" else ("memory_format",)
        options = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        options.pop("device", None)
        node.target, node.args, node.kwargs = "to", (node.args[0], moved), options

    def _keep_copy(self, node: torch.fx.Node) -> None:
        """Keep a copy between devices that become one; rewrite ``type``, which has its device in a text."""
        target = getattr(node.target, "overloadpacket", node.target)
        source, made = (value_of(n) if isinstance(n, torch.fx.Node) else None for n in (*node.args[:1], node))
        if target not in _MOVES or not isinstance(source, torch.Tensor) or not isinstance(made, torch.Tensor):
            return
        here, there = self._place(source.device), self._place(made.device)
        is_copy = source.device != made.device and here == there
        if not is_copy and (target != "type" or there == made.device):
            return
        options: dict[str, Any] = {"dtype": made.dtype}
        if node.kwargs.get("memory_format") is not None:
            options["memory_format"] = node.kwargs["memory_format"]
        if node.op == "call_function":
            node.target, node.kwargs = torch.ops.aten._to_copy.default, {**options, "device": there}
            node.args = node.args[:1]
            return
        node.target, node.args = "to", (node.args[0], there)
        node.kwargs = {**options, "copy": True} if is_copy else options

    def _make_here(self, node: torch.fx.Node) -> None:
        """Make a tensor on the stage's device that torch would make on its default device, or in pinned memory."""
        value = value_of(node)
        made = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        if not made and (value is not None or node.all_input_nodes or not node.users):
            return
        device = made[0].device if made else torch.device("cpu")
        if self._place(device) == device:
            return
        if node.kwargs.get("pin_memory"):
            node.kwargs = {**node.kwargs, "pin_memory": False}
        if node.op == "call_method" and node.target == "pin_memory":
            node.target, node.args, node.kwargs = "clone", node.args[:1], {}
        if node.op != "call_function" or node.kwargs.get("device") is not None:
            return
        if _takes_a_device(node.target):
            node.kwargs = {**node.kwargs, "device": self._place(device)}
        elif isinstance(value, torch.Tensor) and not any(map(_holds_tensors, node.all_input_nodes)):
            with node.graph.inserting_after(node):
                moved = node.graph.call_method("to", (node, self._place(device)))
            moved.meta = dict(node.meta)
            node.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)


def _holds_tensors(node: torch.fx.Node) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value_of(node)))


@functools.cache
def _takes_a_device(function: Callable[..., Any]) -> bool:
    signatures = get_signature_for_torch_op(function)
    if signatures is None or function is torch.asarray:  # torch has no signature of it
        try:
            signatures = [inspect.signature(function)]
        except (TypeError, ValueError):  # a builtin function
            return function is torch.asarray
    return any("device" in signature.parameters for signature in signatures)
