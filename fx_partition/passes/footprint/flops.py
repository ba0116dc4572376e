"""Count the floating-point operations of matrix products, convolutions and attention; those of the rest are few.

The formulas are those of `torch.utils.flop_counter`, and further ones for operators of CPUs that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from ..capture.captured_graph import CapturedGraph
from ..capture.fake_tensors import FakeTensorMode, new_fake_mode, no_new_guards, replaced_by_dummies, shape_env_of
from ..capture.module_members import all_tensors
from ..capture.symbolic_sizes import Size, Symbols, to_expr
from .effect_cache import Effects
from .op_effects import distinct_tensors


def flops_by_node(captured: CapturedGraph, symbols: Symbols) -> dict[str, Size]:
    """Return the operations of each node that has any, over the graph's own symbols; add no guard to these.

    A node that does not run on fake tensors has none.

    Args:
        captured: the graph; it may be static.
        symbols: the graph's symbols.

    Example: for ``F.linear`` with s rows and a weight of [512, 256] the result is ``{"linear": 262144*s}``.
    """
    modules = dict(captured.gm.named_modules())
    shape_env = shape_env_of(leaf for value in captured.values.values() for leaf in pytree.tree_leaves(value))
    effects = Effects(modules, new_fake_mode(shape_env), symbols, _count)
    found: dict[str, Size] = {}
    for node in captured.gm.graph.nodes:
        if node.op not in ("call_function", "call_method", "call_module") or effects.enter_or_exit(node):
            continue
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), captured.values.get)
        tensors: dict[str, torch.Tensor] = {}
        if node.op == "call_module":
            named = all_tensors(modules[str(node.target)])
            tensors = {f"{node.target}.{name}": tensor for name, tensor in named.items()}
        if distinct_tensors((tensors, args, kwargs)):
            counted = effects.of(node, args, kwargs, tensors)
            if counted is not None and counted.flops != 0:
                found[node.name] = counted.flops
    return found


@dataclass(frozen=True)
class _Counted:
    flops: Size

    @property
    def sizes(self) -> tuple[Size]:
        return (self.flops,)


def _count(function: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode) -> _Counted:
    """Run ``function`` once on new fakes in place of its arguments, as `op_effects.observe` does, and count."""
    originals = distinct_tensors((args, kwargs))
    with no_new_guards(mode.shape_env), torch.no_grad(), mode:
        _, (args, kwargs) = replaced_by_dummies(originals, (args, kwargs))
        with _counter() as counter:
            function(*args, **kwargs)
    return _Counted(to_expr(counter.get_total_flops()))


def _counter() -> FlopCounterMode:
    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._transformer_encoder_layer_fwd: _encoder_layer,
        aten.mkldnn_rnn_layer: _recurrent_layer,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    """Count both products of attention, from shapes [batch, heads, tokens, features]."""
    return 4 * query.numel() * key[-2]


def _encoder_layer(source: torch.Size, *rest: Any, **__: Any) -> int:
    """Count four products with weights, and attention, over [batch, tokens, features]."""
    batch, tokens, features = source
    weights = [shape for shape in rest if isinstance(shape, torch.Size) and len(shape) == 2][:4]
    return 2 * batch * tokens * sum(map(torch.Size.numel, weights)) + 4 * batch * tokens * tokens * features


def _recurrent_layer(source: torch.Size, inner: torch.Size, recurrent: torch.Size, *_: Any, **__: Any) -> int:
    """Count the products with both weights for each token, over [tokens, batch, features]."""
    return 2 * source[0] * source[1] * (inner.numel() + recurrent.numel())
