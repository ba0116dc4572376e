"""``torch.compile(model, backend="l2partition")``: plan a Dynamo graph, compile each partition, run them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.fx

from .dynamo.graph_compiler import compile_dynamo_graph
from .options.backend_options import Options


def l2partition(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph in partitions. torch finds this backend by its entry point, so nothing needs importing.

    Args:
        gm, example_inputs: the graph that Dynamo traced and its inputs; ``gm`` is Dynamo's copy, and the model itself
            is not changed.
        mode: as for ``backend="inductor"``.
        options: see `backend_options.Options` and `request.Request`.

    Returns:
        A function of the graph's inputs.

    Raises:
        PartitionError (a ValueError; torch wraps it in BackendCompilerFailed): options, devices or a budget that
            cannot be met; it names the way out.

    Example::

        >>> model = torch.compile(model, backend="l2partition", options={"cache_bytes": "6MiB"})  # doctest: +SKIP
    """
    return compile_dynamo_graph(gm, example_inputs, mode, Options.check(options))
