"""A stage as a module: the code of its graph over parameters and buffers under the model's own names.

Two stages may read one weight. Each has a parameter of its own for it, on one rank over the same memory: a schedule
divides the gradients of each stage once by the number of microbatches, so two stages may not share a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.module_members import all_tensors

from .stage_arguments import Entry
from .stage_graphs import Slot, StageGraph


@dataclass
class _Wiring:
    """What a stage's forward needs beside its tensors.

    Attributes:
        code: the function of the graph; its first argument is the module.
        uses, sends: as in `StageGraph`.
        is_last: whether it makes the model's results.
        entry: reads the arguments of a step, in the first stage; None: they are tensors received.
    """

    code: Callable[..., tuple[Any, ...]]
    uses: tuple[int, ...]
    sends: tuple[Slot, ...]
    is_last: bool
    entry: Entry | None = None


class StageModule(nn.Module):
    """One stage; ``state_dict()`` has the model's keys, those of the weights that it reads."""

    _fx_wiring: _Wiring  # one name, which no child of a model is likely to have

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stage's results for one microbatch.

        Args:
            args: of the first stage the model's arguments, else the tensors that it receives.
            kwargs: of the first stage the model's; others are given those of the rank's step too, and pass them over.

        Returns:
            A tuple of contiguous tensors for the next stage; of the last stage what the model returns: a tensor, or a
            tuple of its tensors in their order.
        """
        wiring = self._fx_wiring
        received = args if wiring.entry is None else wiring.entry.read(args, kwargs)
        made = wiring.code(self, *(_arrived(received[i]) for i in wiring.uses))
        if not wiring.is_last:
            sent = ((s, (received if s.is_relay else made)[s.index]) for s in wiring.sends)
            return tuple(value if s.is_relay else _leaving(value.contiguous()) for s, value in sent)
        # A tensor received lies in a buffer that the next step overwrites.
        results = tuple(received[s.index].clone() if s.is_relay else _leaving(made[s.index]) for s in wiring.sends)
        return results[0] if len(results) == 1 else results

    def train(self, mode: bool = True) -> StageModule:
        """Refused where it would change anything: the graph was traced in one mode."""
        if mode != self.training:
            wanted, traced = ("train", "eval") if mode else ("eval", "train")
            raise PartitionError(
                f"this stage was traced from a model in {traced} mode, and its dropout and normalisation stay so; "
                f"call {wanted}() on the model and make stages anew"
            )
        return self

    def read_arguments_with(self, entry: Entry) -> None:
        """Make it the first stage, which is given the model's arguments."""
        self._fx_wiring.entry = entry

    def compile_code(self, inductor: Mapping[str, Any]) -> None:
        """Let inductor compile the code when it first runs; what crosses the boundaries stays as it is."""
        options = dict(inductor) or None
        self._fx_wiring.code = torch.compile(self._fx_wiring.code, fullgraph=True, dynamic=False, options=options)


class _Arrived(torch.autograd.Function):
    """The tensor itself; its gradient is contiguous, as one has to be that is sent to another rank."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


def _arrived(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.requires_grad:
        return tensor
    arrived: torch.Tensor = _Arrived.apply(tensor)  # type: ignore[no-untyped-call]
    return arrived


class _Leaving(torch.autograd.Function):
    """The same memory as a tensor that nothing has saved and that is no view.

    A schedule that splits the backward detaches in place what a stage has sent, before it computes the gradients of
    weights; an operator may have saved its result for these.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


def _leaving(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.requires_grad:
        return tensor.detach()
    leaving: torch.Tensor = _Leaving.apply(tensor)  # type: ignore[no-untyped-call]
    return leaving


class Members:
    """The parameters and buffers of a whole model: their names, and which of them a ``state_dict()`` has."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = all_tensors(model, every_name=True)
        self.names: dict[int, list[str]] = {}
        for name, tensor in self.by_name.items():
            self.names.setdefault(id(tensor), []).append(name)
        self.persistent = set(model.state_dict().keys())
        self._places = {name: place for place, name in enumerate(self.by_name)}

    def place(self, name: str) -> int:
        """Where the model has it among its parameters and buffers; a constant of the graph comes last."""
        return self._places.get(name, len(self._places))


def build(
    source: StageGraph,
    members: Members,
    own: Callable[[torch.Tensor], torch.Tensor],
    *,
    is_last: bool,
    training: bool,
    unread: Mapping[str, torch.Tensor] | None = None,
) -> StageModule:
    """The module of a stage.

    Args:
        source: its graph.
        members: of the whole model.
        own: the tensor that a stage is to have for one of the model's; equal for equal ones.
        is_last: whether it is the last stage.
        training: the mode in which the model was traced.
        unread: more weights to hold, by name.
    """
    result = StageModule()
    memo: dict[int, Any] = {}
    for module in source.modules.values():
        memo |= {id(tensor): own(tensor) for tensor in all_tensors(module).values()}
    for name, module in source.modules.items():
        holder, attribute = _holder(result, name)
        holder.add_module(attribute, copy.deepcopy(module, memo))
    wanted = {**source.weights, **(unread or {})}
    named = {name: tensor for tensor in wanted.values() for name in members.names.get(id(tensor), ())} | wanted
    # In the model's order, so that a parameter of two names comes under the model's first.
    for name in sorted(named, key=members.place):
        _register(result, name, own(named[name]), name in members.persistent)
    gm = torch.fx.GraphModule(result, source.graph, class_name=f"Stage{source.index}")
    result._fx_wiring = _Wiring(type(gm).forward, source.uses, source.sends, is_last)
    for module in result.modules():
        module.training = training
    return result


def _register(root: nn.Module, name: str, tensor: torch.Tensor, persistent: bool) -> None:
    holder, attribute = _holder(root, name)
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(attribute, tensor)
    else:
        holder.register_buffer(attribute, tensor, persistent=persistent)


def _holder(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the attribute of this path, made where it is missing."""
    *path, attribute = name.split(".")
    for part in path:
        children = dict(root.named_children())
        if part not in children:
            children[part] = nn.Module()
            root.add_module(part, children[part])
        root = children[part]
    return root, attribute
