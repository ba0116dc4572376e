"""A stage that replays a CUDA graph: one launch instead of one for each kernel.

It is captured while the pipeline prepares, for the inputs of each example: first the code itself runs, which loads
kernels and picks algorithms, as that cannot be captured. Each later call with inputs of a captured signature is::

    static inputs <- copies of the arguments;   replay;   results <- copies of the static outputs

all on the stage's stream. Each replay writes the same outputs, while a copy or another stage may still read those of
the last request, so they are copied out. Weights are not copied: their addresses stay (see `stage_weights`). Calls with
inputs of other signatures run the code itself. A capture waits for all work of the device, so no request does one.

All graphs of a stage have one memory pool: they run one after another on one stream.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionWarning

from ..devices.cuda_driver import Driver, Graph, Stream


@dataclass(frozen=True)
class _CapturedCall:
    graph: Graph
    inputs: dict[int, Tensor]  # by position of the argument
    outputs: Sequence[Any]


class GraphedStage:
    """A stage's function, captured for each signature (sizes, strides and dtypes) of its arguments while it prepares.

    Args:
        function: the stage's code; it enqueues all its work on the current stream.
        weights: the positions of the arguments that are the same tensor in every call.
        device, stream: where it runs; ``stream`` must be the current stream in each call.

    If a capture fails, a PartitionWarning gives the reason, and the stage runs without a graph from then on.

    Attributes:
        captures: whether a call with a new signature is captured.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Any]],
        weights: frozenset[int],
        device: torch.device,
        stream: Stream,
        driver: Driver,
    ) -> None:
        self._function, self._weights = function, weights
        self._device, self._stream, self._driver = device, stream, driver
        self._captured: dict[Hashable, _CapturedCall] = {}
        self._pool = driver.graph_pool()
        self.captures = False

    def __call__(self, *arguments: Any) -> Sequence[Any]:
        if not self._captured and not self.captures:
            return self._function(*arguments)
        signature = tuple(map(_signature, arguments))
        if signature not in self._captured and not (self.captures and self._capture(signature, arguments)):
            return self._function(*arguments)
        captured = self._captured[signature]
        for position, static in captured.inputs.items():
            self._driver.copy_into(static, arguments[position])
        captured.graph.replay()
        return [self._driver.copy(o, self._device) if isinstance(o, Tensor) else o for o in captured.outputs]

    def close(self) -> None:
        """Free the graphs and their memory; all work of the stage must be finished."""
        while self._captured:
            self._captured.popitem()[1].graph.reset()

    def _capture(self, signature: Hashable, arguments: Sequence[Any]) -> bool:
        """Try to capture the function for arguments of this signature; return whether it worked."""
        try:
            # A tensor that is made under inference mode could not be written outside it.
            with torch.inference_mode(False), torch.no_grad():
                inputs = {
                    position: torch.empty_like(argument)
                    for position, argument in enumerate(arguments)
                    if isinstance(argument, Tensor) and position not in self._weights
                }
            for position, static in inputs.items():
                if static.stride() != arguments[position].stride():
                    raise RuntimeError(f"argument {position} has gaps or overlaps itself")
            static_arguments = [inputs.get(position, argument) for position, argument in enumerate(arguments)]
            graph, outputs = self._driver.capture(
                lambda: self._function(*static_arguments), self._stream, self._pool
            )
        except Exception as error:  # whatever the reason, the stage can run without a graph
            self.captures = False
            warnings.warn(
                f"a stage on {self._device} runs without a CUDA graph: {reason(error)}",
                PartitionWarning,
                stacklevel=2,
            )
            return False
        self._captured[signature] = _CapturedCall(graph, inputs, outputs)
        return True


def reason(error: BaseException) -> str:
    """Return what made a capture fail: the first error, as ending a capture that failed raises another."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _signature(argument: Any) -> Hashable:
    return (argument.shape, argument.stride(), argument.dtype) if isinstance(argument, Tensor) else argument
