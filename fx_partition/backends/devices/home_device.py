"""Find the devices on which a graph has its tensors, and on which a stage has them.

A graph's *home* is the device of its model: the first GPU among the devices of its weights, its inputs and its other
tensors; without a GPU, the CPU. A tensor that the trace has on any device of the home's type, a stage has on its own
device. Other tensors stay where they are, as the model put them there on purpose. A result goes back to the device that
the trace has it on::

    trace                                                    a stage on cuda:1 has
    model on cuda:0, an index table on the CPU               weights on cuda:1, the table on the CPU
    layers placed by hand on cuda:0 and cuda:2               weights of both on cuda:1
    all on the CPU                                           weights and table on cuda:1
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError, PartitionWarning
from fx_partition.passes.capture.captured_graph import CapturedGraph

from .cuda_driver import DRIVER


def with_index(device: torch.device) -> torch.device:
    """Return the device as tensors name it: ``cuda`` is the current GPU."""
    return DRIVER.device(device) if device.type == "cuda" else device


def home_of(captured: CapturedGraph) -> torch.device:
    """Return the device of the model."""
    devices = list(dict.fromkeys(tensor.device for tensor in _tensors(captured)))
    gpus = [device for device in devices if device.type == "cuda"]
    return next(iter([*gpus, *devices]), torch.device("cpu"))


def place(device: torch.device, home: torch.device, stage: torch.device) -> torch.device:
    """Return the device on which a stage has a tensor that the trace has on ``device``.

    Example::

        >>> gpu, other, cpu = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
        >>> place(gpu, gpu, other), place(cpu, gpu, other), place(cpu, cpu, other)
        (device(type='cuda', index=1), device(type='cpu'), device(type='cuda', index=1))
    """
    return stage if device.type == home.type else device


def moves(captured: CapturedGraph, stages: Iterable[torch.device]) -> bool:
    """Return whether stages on these devices have a weight or an input on another device than the model has it."""
    home, stages = home_of(captured), set(stages)
    inputs = [value for node, value in captured.values.items() if node.op == "placeholder"]
    tensors = [value for value in (*captured.weights.values(), *inputs) if isinstance(value, torch.Tensor)]
    return any(
        place(device, home, stage) != device for device in {tensor.device for tensor in tensors} for stage in stages
    )


def warn_of_what_stays(captured: CapturedGraph) -> None:
    """Warn of weights that stay on the CPU while the rest of the model goes to the devices of the stages."""
    home = home_of(captured)
    left = [
        captured.names.get(node, node.name)
        for node, weight in captured.weights.items()
        if weight.device.type != home.type and weight.is_floating_point() and weight.numel() > 1
    ]
    if left:
        warnings.warn(
            f"{_some(left)} on the CPU, so what reads them runs there too, on whatever device its stage is: the model "
            f"is on {home}, and weights on the CPU stay there; move the whole model to one device to have it in stages",
            PartitionWarning,
            stacklevel=3,
        )


def refuse_several(captured: CapturedGraph, why: str, otherwise: str = "") -> None:
    """Refuse a model whose weights are on several GPUs where all of it has to be on one.

    Args:
        why: the reason that all weights have to be on one device.
        otherwise: a way out besides moving the model.

    Raises:
        PartitionError: it names weights and devices.
    """
    home = home_of(captured)
    found: dict[torch.device, list[str]] = {}
    for node, weight in captured.weights.items():
        if weight.device.type == home.type:
            found.setdefault(weight.device, []).append(captured.names.get(node, node.name))
    if len(found) > 1:
        where = "; ".join(f"{_some(names)} on {device}" for device, names in found.items())
        raise PartitionError(
            f'the model is on several devices ({where}), and {why}: move it to one, as in model.to("{home}")'
            + (otherwise and f", or {otherwise}")
        )


def _some(names: Sequence[str]) -> str:
    """Return the first three names, the number of the rest, and the verb."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" is" if len(names) == 1 else " are")


def _tensors(captured: CapturedGraph) -> Iterator[torch.Tensor]:
    """Yield the weights, then the inputs, then the results of nodes."""
    yield from captured.weights.values()
    nodes = sorted(captured.values, key=lambda node: node.op != "placeholder")
    for leaf in pytree.tree_leaves([captured.values[node] for node in nodes]):
        if isinstance(leaf, torch.Tensor):
            yield leaf
