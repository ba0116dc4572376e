"""Capture a Dynamo graph: find which of its inputs are weights, user inputs and symbols."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.capture_model import from_graph
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.fake_tensors import has_symbolic_sizes
from fx_partition.passes.capture.graph_symbols import numbers_from_inputs
from fx_partition.passes.capture.metadata_changes import settle_metadata
from fx_partition.passes.capture.newest_writes import use_newest
from fx_partition.passes.capture.user_names import user_name

from .torch_internals import is_static_input, source_name

_OF_A_MODULE = re.compile(r"_(parameters|buffers)\['[^']*'\]$")


def capture_dynamo(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> CapturedGraph:
    """Return a Dynamo graph with its weights and their names.

    Args:
        gm: the graph, which the backend owns: a use of a tensor that was written in place becomes a use of the result
            of the last write.
        example_inputs: the inputs that Dynamo gave the backend, parameters included.
    """
    if use_newest(gm.graph):
        gm.recompile()
    captured = from_graph(gm)
    weights = dict(captured.weights)
    names = dict(captured.names)
    values = dict(captured.values)
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True):
        source = source_name(node)
        names[node] = user_name(source) if source else str(node.target)
        # A static cache whose length Dynamo made symbolic is an input here: its bytes go with its sizes, and a later
        # call passes another cache.
        if is_weight(node, value) and not has_symbolic_sizes(values.get(node)):
            weights[node] = value
    fakes = [values.get(node) for node in gm.graph.find_nodes(op="placeholder")]
    numbers = numbers_from_inputs(fakes, example_inputs)
    return settle_metadata(CapturedGraph(gm, values, weights, names, example_numbers=numbers))


def is_weight(node: torch.fx.Node, value: Any) -> bool:
    """Return whether an input is a parameter or a buffer; ``value`` is its real value."""
    if not isinstance(value, torch.Tensor):
        return False
    known = isinstance(value, torch.nn.Parameter) or is_static_input(node)
    return known or _OF_A_MODULE.search(source_name(node)) is not None
