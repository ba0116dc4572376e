"""Record a call of a block while a model is traced: everything on which the nodes that it writes can depend."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.utils import _pytree as pytree

from .export_tracer import Tracing
from .fake_tensors import FakeTensor
from .module_members import all_tensors
from .operators import storage_number
from .symbolic_sizes import to_expr

# Types of arguments whose values cannot change during a call.
SIMPLE = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass
class BlockCall:
    """The state of a trace at the start of a call of a block.

    Attributes:
        tensors, nodes: the tensor arguments and the weights, and the node that stands for each at this time.
        others: the other arguments, and the pytree structure of all arguments.
        settings: what else the trace depends on: modes, and the line of the model's code.
        scopes: the modules that are running, outermost first; the last is the block.
        after: the newest node before the call.
        functions, calls: how often each function, and the module at each path, had been called.
    """

    tracing: Tracing
    tensors: list[FakeTensor]
    nodes: list[torch.fx.Node]
    others: tuple[Any, ...]
    settings: tuple[Any, ...]
    scopes: list[tuple[str, tuple[str, Any]]]
    after: torch.fx.Node | None
    functions: dict[Any, int]
    calls: dict[str, int]

    @classmethod
    def of(cls, tracing: Tracing, block: nn.Module, args: Any, kwargs: Any) -> BlockCall | None:
        """Return the state at a call; None if an argument is neither a tensor nor a simple value, or a weight is not a
        plain tensor."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        if not all(type(other) in SIMPLE for other in others):
            return None
        tensors += all_tensors(block, every_name=True).values()
        if not all(_fake(t) is not None and tracing.node_of(t) is not None for t in tensors):
            return None
        places = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        typed = [(type(other), other) for other in others]
        return cls(
            tracing, [_fake(t) for t in tensors], [known(tracing.node_of(t)) for t in tensors], (spec, places, typed),
            _settings(), tracing.scopes, tracing.last, dict(tracing.functions), dict(tracing.calls),
        )  # fmt: skip

    @property
    def scope(self) -> str:
        return self.scopes[-1][0]

    @property
    def path(self) -> str:
        return self.scopes[-1][1][0]

    def is_like(self, other: BlockCall) -> bool:
        """Whether the two calls differ in nothing that a trace can see but the identity of blocks and tensors."""
        return (
            self.others == other.others
            and self.settings == other.settings
            and self.scopes[:-1] == other.scopes[:-1]
            and self.scopes[-1][1][1] is other.scopes[-1][1][1]
            and len(self.tensors) == len(other.tensors)
            and all(map(looks_alike, self.tensors, other.tensors))
            # The same tensors, nodes and memories must be shared at the same places.
            and _first_places(self.tensors) == _first_places(other.tensors)
            and _first_places(self.nodes) == _first_places(other.nodes)
            and _first_places([*map(memory_of, self.tensors)]) == _first_places([*map(memory_of, other.tensors)])
        )


def known(node: torch.fx.Node | None) -> torch.fx.Node:
    """Return a node that cannot be None here."""
    assert node is not None
    return node


def _fake(tensor: torch.Tensor) -> Any:
    """Return a tensor if it is fake, as arguments and weights are during a trace; else None."""
    return tensor if isinstance(tensor, FakeTensor) else None


def _settings() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    frames = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward":  # the frames that a node's stack_trace shows
            frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), autocast, frames


def looks_alike(a: FakeTensor, b: FakeTensor) -> bool:
    """Whether two tensors have the same metadata."""
    return (
        a.dtype == b.dtype and a.device == b.device and a.layout == b.layout and a.requires_grad == b.requires_grad
        and a.fake_mode is b.fake_mode and type(a) is type(b)
        and a.is_conj() == b.is_conj() and a.is_neg() == b.is_neg() and _layout(a) == _layout(b)
    )  # fmt: skip


def _layout(tensor: torch.Tensor) -> list[Any]:
    sizes = (*tensor.shape, *tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes())
    return [tensor.dim(), *map(to_expr, sizes)]


def memory_of(tensor: torch.Tensor) -> int:
    """Return a number that is equal for tensors that share memory."""
    number: int = storage_number(tensor)
    return number


def _first_places(items: Sequence[Any]) -> list[int]:
    """Return, for each item, the place of the first item that is the same."""
    keys = [item if isinstance(item, int) else id(item) for item in items]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    return [first[key] for key in keys]
