"""A stage that replays a CUDA graph: one launch instead of one for each kernel.

The first calls run the code itself, which loads kernels and picks algorithms; that cannot be captured. The next call is
captured, and each later call is::

    static inputs <- copies of the arguments;   replay;   results <- copies of the static outputs

all on the stage's stream. Each replay writes the same outputs, while a copy or another stage may still read those of
the last request, so they are copied out. A graph for each request in flight would save these copies, at the cost of a
capture and a set of intermediates for each request; the copies are small, as the planner puts boundaries where few
bytes cross. Weights are not copied: their addresses stay (see `weight_buffer`).

Each call does the stage's work exactly once, captured or not, so a stage that writes a buffer or draws random numbers
may be captured.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionWarning

from ..devices.cuda_driver import Driver, Graph, Stream

WARM_UP = 2  # calls of a signature before the capture


@dataclass(frozen=True)
class _CapturedCall:
    graph: Graph
    inputs: dict[int, Tensor]  # by position of the argument
    outputs: Sequence[Any]


class GraphedStage:
    """A stage's function, captured once for each signature (sizes, strides and dtypes) of its arguments.

    Args:
        function: the stage's code; it enqueues all its work on the current stream.
        weights: the positions of the arguments that are the same tensor in every call.
        device, stream: where it runs; ``stream`` must be the current stream in each call.

    If a capture fails, a PartitionWarning gives the reason, and the stage runs without a graph from then on.
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
        self._calls: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _CapturedCall] = {}
        self._works = True

    def __call__(self, *arguments: Any) -> Sequence[Any]:
        if not self._works:
            return self._function(*arguments)
        signature = tuple(map(_signature, arguments))
        if signature not in self._captured:
            self._calls[signature] += 1
            if self._calls[signature] <= WARM_UP or not self._capture(signature, arguments):
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
        self._works = False

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
            graph, outputs = self._driver.capture(lambda: self._function(*static_arguments), self._stream)
        except Exception as error:  # whatever the reason, the stage can run without a graph
            self._works = False
            warnings.warn(
                f"a stage on {self._device} runs without a CUDA graph: {type(error).__name__}: {error}",
                PartitionWarning,
                stacklevel=2,
            )
            return False
        self._captured[signature] = _CapturedCall(graph, inputs, outputs)
        return True


def _signature(argument: Any) -> Hashable:
    return (argument.shape, argument.stride(), argument.dtype) if isinstance(argument, Tensor) else argument
