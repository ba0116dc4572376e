"""Find the operands that a higher-order operator writes: its bodies are graphs, which may write their inputs.

Before (a batch norm in training mode under activation checkpointing)::

    body = self.wrap_body_0
    tag_activation_checkpoint = torch.ops.higher_order.tag_activation_checkpoint(body, linear, mean, var, weight)

After: ``mean`` and ``var`` are written. The last operands are the body's inputs, in order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
import torch.fx
from torch.utils import _pytree as pytree

from ..capture.captured_graph import value_of
from ..capture.fake_tensors import FakeTensorMode
from ..capture.in_place_ops import called, is_in_place
from ..capture.operators import HigherOrderOperator, OpOverload, schema_of
from .op_effects import distinct_tensors, observe


def written_operands(node: torch.fx.Node, gm: torch.fx.GraphModule, mode: FakeTensorMode) -> Iterator[torch.fx.Node]:
    """Yield the operands that the bodies of a higher-order operator write; none for any other operator.

    If a body does not run on fake tensors, and has an operator that may write, it is assumed to write all operands.

    Args:
        gm: the module with the bodies.
        mode: the fake mode for the runs of bodies.
    """
    if not isinstance(node.target, HigherOrderOperator):
        return
    operands = pytree.tree_leaves(node.args)
    for source in node.all_input_nodes:
        body = operator.attrgetter(str(source.target))(gm) if source.op == "get_attr" else None
        if isinstance(body, torch.fx.GraphModule) and _may_write(body):
            inputs = body.graph.find_nodes(op="placeholder")
            written = _written_inputs(body, inputs, mode)
            last = [operand for operand in operands[-len(inputs) :] if isinstance(operand, torch.fx.Node)]
            if written is None or (written and len(last) != len(inputs)):
                yield from node.all_input_nodes
            elif written:
                yield from (operand for operand, place in zip(last, inputs, strict=True) if place in written)


def _written_inputs(
    body: torch.fx.GraphModule, inputs: list[torch.fx.Node], mode: FakeTensorMode
) -> set[torch.fx.Node] | None:
    """Return the placeholders that a body writes; None if it does not run on fake tensors."""
    values = [value_of(place) for place in inputs]
    tensors = distinct_tensors(values)
    try:
        effect = observe(body, tuple(values), {}, mode)
    except Exception:  # any operator may refuse fake tensors, with any exception
        return None
    changed = {id(tensors[number]) for number in effect.writes | effect.reshapes}
    return {place for place, value in zip(inputs, values, strict=True) if id(value) in changed}


def _may_write(body: torch.fx.GraphModule) -> bool:
    """Whether a body has an operator that may write, by names and schemas; a fast check before the body is run."""
    graphs = (module.graph for module in body.modules() if isinstance(module, torch.fx.GraphModule))
    return any(_writes(node) for graph in graphs for node in graph.nodes)


def _writes(node: torch.fx.Node) -> bool:
    if not node.op.startswith("call_"):
        return False
    if isinstance(node.target, OpOverload):
        return bool(schema_of(node.target).is_mutable) or "batch_norm" in str(node.target)
    if is_in_place(node) or called(node) in ("setitem", "batch_norm", "instance_norm"):
        return True
    flags = (*node.args, *node.kwargs.values())  # one of them may be ``inplace``
    return node.kwargs.get("out") is not None or any(flag is True for flag in flags)
