"""Where the tensors of a graph are, and where a stage has them.

A graph's *home* is the device of its model: the first GPU that a weight is on, or an input, or anything else; without
one, the CPU. What the trace has on any device of the home's kind, a stage has on its own device; the rest stays where
it is, as the model put it there on purpose. A result goes back to the device that the trace has it on::

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
from fx_partition.passes.capture.capture_model import CapturedGraph

from .cuda_driver import DRIVER


def with_index(device: torch.device) -> torch.device:
    """The device as tensors name it: ``cuda`` is the current GPU."""
    return DRIVER.device(device) if device.type == "cuda" else device


def home_of(captured: CapturedGraph) -> torch.device:
    """The device of the model."""
    devices = list(dict.fromkeys(tensor.device for tensor in _tensors(captured)))
    gpus = [device for device in devices if device.type == "cuda"]
    return next(iter([*gpus, *devices]), torch.device("cpu"))


def place(device: torch.device, home: torch.device, stage: torch.device) -> torch.device:
    """Where a stage has what the trace has on ``device``.

    Example::

        >>> gpu, other, cpu = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
        >>> place(gpu, gpu, other), place(cpu, gpu, other), place(cpu, cpu, other)
        (device(type='cuda', index=1), device(type='cpu'), device(type='cuda', index=1))
    """
    return stage if device.type == home.type else device


def moves(captured: CapturedGraph, stages: Iterable[torch.device]) -> bool:
    """Whether stages on these devices have a weight or an input elsewhere than the model has it."""
    home, stages = home_of(captured), set(stages)
    inputs = [value for node, value in captured.values.items() if node.op == "placeholder"]
    tensors = [value for value in (*captured.weights.values(), *inputs) if isinstance(value, torch.Tensor)]
    return any(
        place(device, home, stage) != device for device in {tensor.device for tensor in tensors} for stage in stages
    )


def warn_of_what_stays(captured: CapturedGraph) -> None:
    """Say which weights stay on the CPU while the rest of the model goes to the stages' devices."""
    home = home_of(captured)
    left = [
        captured.names.get(node, node.name)
        for node, weight in captured.weights.items()
        if weight.device.type != home.type and weight.is_floating_point() and weight.numel() > 1
    ]
    if left:
        warnings.warn(
            f"{_some(left)} on the CPU, where what reads them runs, whatever device its stage is on: the model is on "
            f"{home}, and such weights stay where they are; move all of the model to one device for stages to have it",
            PartitionWarning,
            stacklevel=3,
        )


def refuse_several(captured: CapturedGraph, why: str, otherwise: str = "") -> None:
    """Refuse a model whose weights are on several GPUs where all of it has to be on one.

    Args:
        why: what needs one device.
        otherwise: another way out than to move the model.

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
    """The first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" is" if len(names) == 1 else " are")


def _tensors(captured: CapturedGraph) -> Iterator[torch.Tensor]:
    """Weights, then inputs, then what the graph makes."""
    yield from captured.weights.values()
    nodes = sorted(captured.values, key=lambda node: node.op != "placeholder")
    for leaf in pytree.tree_leaves([captured.values[node] for node in nodes]):
        if isinstance(leaf, torch.Tensor):
            yield leaf
