"""A stage as a module: the code of its graph, with parameters and buffers under the model's own names.

Two stages may read one weight. Each has its own parameter for it, over the same memory if they are on one rank: a
schedule divides the gradients of each stage once by the number of microbatches, so two stages must not share a
gradient.
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

from .stage_arguments import ArgumentReader
from .stage_graphs import SentTensor, StageGraph


@dataclass
class _Wiring:
    """What a stage's forward uses, besides its tensors.

    Attributes:
        code: the function of the graph; its first argument is the module.
        uses, sends: see `StageGraph`.
        is_last: whether the stage returns the model's results.
        reader: reads the arguments of a step in the first stage; None: the arguments are tensors received.
    """

    code: Callable[..., tuple[Any, ...]]
    uses: tuple[int, ...]
    sends: tuple[SentTensor, ...]
    is_last: bool
    reader: ArgumentReader | None = None


class StageModule(nn.Module):
    """One stage; its ``state_dict()`` has the weights that it reads, under the model's keys."""

    _fx_wiring: _Wiring  # a single attribute, with a name that no child of a model is likely to have

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage on one microbatch.

        Args:
            args: the model's arguments in the first stage; in others, the tensors received.
            kwargs: the model's keyword arguments in the first stage; a schedule passes them to other stages too, which
                ignore them.

        Returns:
            A tuple of contiguous tensors for the next stage. The last stage returns the tensors of the model's output:
            one tensor, or a tuple of them in order.
        """
        wiring = self._fx_wiring
        received = args if wiring.reader is None else wiring.reader.read(args, kwargs)
        made = wiring.code(self, *(_arrived(received[i]) for i in wiring.uses))
        if not wiring.is_last:
            sent = ((s, (received if s.is_relay else made)[s.index]) for s in wiring.sends)
            return tuple(value if s.is_relay else _leaving(value.contiguous()) for s, value in sent)
        # A received tensor is a view of a buffer that the next step overwrites.
        results = tuple(received[s.index].clone() if s.is_relay else _leaving(made[s.index]) for s in wiring.sends)
        return results[0] if len(results) == 1 else results

    def train(self, mode: bool = True) -> StageModule:
        """Accept the mode in which the graph was traced; raise an error for the other."""
        if mode != self.training:
            wanted, traced = ("train", "eval") if mode else ("eval", "train")
            raise PartitionError(
                f"this stage was traced from a model in {traced} mode, which fixed its dropout and normalisation; "
                f"call {wanted}() on the model and make new stages"
            )
        return self

    def read_arguments_with(self, reader: ArgumentReader) -> None:
        """Make this the first stage, whose arguments are those of the model."""
        self._fx_wiring.reader = reader

    def compile_code(self, inductor: Mapping[str, Any]) -> None:
        """Let inductor compile the code when it first runs; the tensors that it receives and sends stay the same."""
        options = dict(inductor) or None
        self._fx_wiring.code = torch.compile(self._fx_wiring.code, fullgraph=True, dynamic=False, options=options)


class _Arrived(torch.autograd.Function):
    """Return the tensor itself, with a contiguous gradient, as a gradient must be to be sent to another rank."""

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
    """Return the same memory as a new tensor, which is not a view and which no operator has saved.

    A schedule that splits the backward detaches the sent tensors in place before it computes the gradients of weights.
    An operator may have saved its result for these gradients, so the result itself must not be sent.
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


class ModelTensors:
    """The parameters and buffers of a whole model: their names, and which are in its ``state_dict()``."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = all_tensors(model, every_name=True)
        self.names: dict[int, list[str]] = {}
        for name, tensor in self.by_name.items():
            self.names.setdefault(id(tensor), []).append(name)
        self.persistent = set(model.state_dict().keys())
        self._positions = {name: position for position, name in enumerate(self.by_name)}

    def position(self, name: str) -> int:
        """Return the position of a name among the model's parameters and buffers; constants of the graph come last."""
        return self._positions.get(name, len(self._positions))


def build(
    source: StageGraph,
    members: ModelTensors,
    own: Callable[[torch.Tensor], torch.Tensor],
    *,
    is_last: bool,
    training: bool,
    unread: Mapping[str, torch.Tensor] | None = None,
) -> StageModule:
    """Return the module of a stage.

    Args:
        source: the graph of the stage.
        members: the parameters and buffers of the whole model.
        own: returns the stage's tensor for a tensor of the model; it must return the same one for the same tensor.
        is_last: whether this is the last stage.
        training: whether the model was traced in training mode.
        unread: weights by name that the stage holds in addition, as no stage reads them.
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
    # In the model's order, so that a parameter with two names is listed under the same name as in the model.
    for name in sorted(named, key=members.position):
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
    """Return the submodule that holds the attribute of this path, and the attribute's name; make missing submodules."""
    *path, attribute = name.split(".")
    for part in path:
        children = dict(root.named_children())
        if part not in children:
            children[part] = nn.Module()
            root.add_module(part, children[part])
        root = children[part]
    return root, attribute
