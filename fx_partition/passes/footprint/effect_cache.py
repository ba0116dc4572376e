"""Observe every node of a graph, with one run on fake tensors for all calls that are alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.autocast_regions import Regions, is_region_handle, leaves_autocast, under_autocast
from ..capture.fake_tensors import FakeTensorMode, is_learned, is_wrapped
from ..capture.operators import HigherOrderOperator
from ..capture.symbolic_sizes import Size, Symbols, to_expr
from ..capture.tensor_subclasses import plain_tensors, structure


class Seen(Protocol):
    """An observer's result for a node; ``sizes`` lists every size in it."""

    @property
    def sizes(self) -> Sequence[Size]: ...


SeenT = TypeVar("SeenT", bound=Seen)


class Effects(Generic[SeenT]):
    """An observer of nodes in the order of their graph, with a cache by operator and argument shapes.

    Args:
        modules: the graph's submodules by name.
        mode: the fake mode for the runs.
        symbols: the graph's symbols.
        observe: returns the result for one call: ``observe(function, args, kwargs, mode)``.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        mode: FakeTensorMode,
        symbols: Symbols,
        observe: Callable[[Callable[..., Any], Any, Any, FakeTensorMode], SeenT],
    ) -> None:
        self._modules, self._mode, self._symbols, self._look = modules, mode, symbols, observe
        self._memo: dict[Any, SeenT | None] = {}
        self._regions = Regions()

    def enter_or_exit(self, node: torch.fx.Node) -> bool:
        """Go on behind ``node``; return whether it enters or leaves an autocast region."""
        self._regions.pass_node(node)
        return is_region_handle(node) or leaves_autocast(node)

    def of(
        self, node: torch.fx.Node, args: Any, kwargs: Any, module_tensors: dict[str, torch.Tensor]
    ) -> SeenT | None:
        """Return the result for a node; None if it does not run on fakes.

        Args:
            args, kwargs: the fake values of the node's arguments.
            module_tensors: the parameters and buffers of the module that the node calls, if it calls one.
        """
        if isinstance(node.target, HigherOrderOperator):
            return None
        if not all(_is_replaceable(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            return None
        if node.op == "call_module":
            return self._observe(node, (module_tensors, *args), kwargs)
        key = (node.op, node.target, tuple(enter.args for enter in self._regions.open), _key((args, kwargs)))
        try:
            known = key in self._memo
        except TypeError:  # an argument that does not hash
            return self._observe(node, args, kwargs)
        if not known:
            self._memo[key] = self._observe(node, args, kwargs)
        return self._memo[key]

    def _observe(self, node: torch.fx.Node, args: Any, kwargs: Any) -> SeenT | None:
        with under_autocast(self._regions.open):
            try:
                effect = self._look(self._callable(node), args, kwargs, self._mode)
            except Exception:  # any operator may refuse fake tensors, with any exception
                return None
        return self._without_fresh_symbols(node, effect)

    def _callable(self, node: torch.fx.Node) -> Any:
        if node.op == "call_method":
            return lambda self_arg, *args, **kwargs: getattr(self_arg, str(node.target))(*args, **kwargs)
        if node.op == "call_function":
            return node.target
        module = self._modules[str(node.target)]
        prefix = f"{node.target}."

        def call(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            return torch.func.functional_call(module, named, args, kwargs)

        return call

    def _without_fresh_symbols(self, node: torch.fx.Node, effect: SeenT) -> SeenT | None:
        """Return a result; None if it has a symbol of this run, which a size known only at run time gets each time."""
        known = {*self._symbols.hints, *self._symbols.unbacked}
        if all(isinstance(size, int) or size.free_symbols <= known for size in effect.sizes):
            return effect
        return None


def _is_replaceable(leaf: Any) -> bool:
    """Whether a new strided fake can replace an argument: not if it is a tensor of vmap or grad, or sparse."""
    return not isinstance(leaf, torch.Tensor) or (not is_wrapped(leaf) and leaf.layout == torch.strided)


def _key(tree: Any) -> tuple[Any, ...]:
    """Return a key that is equal for calls with the same effect: metadata of tensors, values of other arguments."""
    leaves, spec = pytree.tree_flatten(tree)
    seen: dict[int, int] = {}
    parts: list[Any] = [spec]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            number = seen.setdefault(id(leaf), len(seen))
            parts.append((number, structure(leaf), *map(_layout, dict.fromkeys((leaf, *plain_tensors(leaf))))))
        elif isinstance(leaf, torch.SymInt):
            parts.append(to_expr(leaf))
        elif isinstance(leaf, (torch.SymFloat, torch.SymBool)):
            parts.append(leaf.node.expr)
        else:
            parts.append((type(leaf), leaf))
    return tuple(parts)


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    shape, strides = tuple(map(to_expr, tensor.shape)), tuple(map(to_expr, tensor.stride()))
    return shape, strides, tensor.dtype, tensor.device, is_learned(tensor)
