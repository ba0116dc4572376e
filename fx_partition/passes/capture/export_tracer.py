"""Access to the tracer behind torch.export, which writes a graph while a model runs on fake tensors.

No other module imports it. Tried on torch 2.13.0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.fx.experimental import proxy_tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._thunk import Thunk

__all__ = ["Tracing", "fresh_like", "new_storage", "snapshot", "undisturbed"]


class Tracing:
    """The tracer that is under way in this thread."""

    def __init__(self) -> None:
        mode = proxy_tensor.get_proxy_mode()
        if mode is None:
            raise LookupError("no trace is under way")
        self._tracer: Any = mode.tracer
        self.graph: torch.fx.Graph = self._tracer.graph

    @property
    def scopes(self) -> list[tuple[str, tuple[str, Any]]]:
        """Return the modules that are running, outermost first: key, path and class, as in ``nn_module_stack``."""
        return list(self._tracer.module_stack.items())

    @property
    def calls(self) -> dict[str, int]:
        """Return how often the module at each path was called."""
        return self._tracer.num_calls  # type: ignore[no-any-return]

    @property
    def functions(self) -> dict[Any, int]:
        """Return how often each torch function was called."""
        return self._tracer.torch_fn_counts  # type: ignore[no-any-return]

    @property
    def last_function(self) -> Any:
        """Return the torch function that was called last."""
        return self._tracer.torch_fn_metadata

    @last_function.setter
    def last_function(self, function: Any) -> None:
        self._tracer.torch_fn_metadata = function

    @property
    def last(self) -> torch.fx.Node | None:
        """Return the newest node; None in an empty graph."""
        return next(iter(reversed(self.graph.nodes)), None)

    @contextlib.contextmanager
    def functions_of_nodes(self) -> Iterator[dict[torch.fx.Node, Any]]:
        """Collect, for each node written inside this context, the function that its ``torch_fn`` names."""
        plain = self._tracer.create_node
        found: dict[torch.fx.Node, Any] = {}

        def create_node(*args: Any, **kwargs: Any) -> torch.fx.Node:
            node: torch.fx.Node = plain(*args, **kwargs)
            found[node] = self.last_function
            return node

        self._tracer.create_node = create_node
        try:
            yield found
        finally:
            del self._tracer.create_node

    def node_of(self, value: torch.Tensor | torch.SymInt) -> torch.fx.Node | None:
        """Return the node that stands for a tensor or a size.

        None for a constant, for a value without a node, and for a size whose node is made when it is first needed.
        """
        if isinstance(value, torch.Tensor):
            slot = self._tracer.tensor_tracker.get(value)
            return None if slot is None or slot.constant is not None else slot.proxy.node
        thunk = self._tracer.symnode_tracker.get(value)
        proxy = None if thunk is None else thunk.r if thunk.f is None else None
        return None if proxy is None else proxy.node

    def is_known(self, size: torch.SymInt) -> bool:
        """Whether a size has a node, or will get one when it is first needed."""
        return size in self._tracer.symnode_tracker

    def add(self, like: torch.fx.Node, args: Any, kwargs: Any, name: str) -> torch.fx.Node:
        """Write a node as the tracer would, but without its metadata and value."""
        node = self.graph.create_node(like.op, like.target, args, kwargs, name, like.type)
        scope = self._tracer.scope
        self._tracer.node_name_to_scope[node.name] = (scope.module_path, scope.module_type)
        return node

    def track_size(self, size: torch.SymInt, node: torch.fx.Node) -> None:
        """Let a node stand for a size."""
        proxy = torch.fx.Proxy(node, self._tracer)
        proxy_tensor.set_proxy_slot(size, self._tracer, Thunk(lambda: proxy))

    def track(self, tensor: torch.Tensor, node: torch.fx.Node) -> None:
        """Let a node stand for a tensor."""
        proxy_tensor.track_tensor(tensor, torch.fx.Proxy(node, self._tracer), constant=None, tracer=self._tracer)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run torch functions inside this context that no tracer records."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


def snapshot(value: FakeTensor, storage: torch.Tensor) -> FakeTensor:
    """Return a tensor with the metadata of ``value`` in the memory of ``storage``."""
    result: Any = proxy_tensor.snapshot_fake(value)
    torch._functionalize_unsafe_set(result, storage)
    return result  # type: ignore[no-any-return]


def new_storage(value: FakeTensor) -> FakeTensor:
    """Return an empty tensor with new memory of the same size as that of ``value``."""
    mode = value.fake_mode
    with in_kernel_invocation_manager(mode):
        memory = torch.empty(0, dtype=torch.uint8, device="meta")
        # A tensor of as many elements would take ten times as long where the number is symbolic.
        torch.ops.inductor.resize_storage_bytes_(memory, value.untyped_storage().nbytes())
    return FakeTensor(mode, memory, value.device)


def fresh_like(value: FakeTensor, sizes: Sequence[Any], strides: Sequence[Any], storage: torch.Tensor) -> FakeTensor:
    """Return a tensor like ``value``, but of other sizes and strides and in the memory of ``storage``."""
    mode = value.fake_mode
    with in_kernel_invocation_manager(mode):
        memory = torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")
    result = FakeTensor(mode, memory, value.device)
    torch._functionalize_unsafe_set(result, storage)
    return result.requires_grad_(value.requires_grad)  # type: ignore[return-value]
