"""A stage that replays a CUDA graph: one launch instead of one a kernel.

The first calls run the code itself (it loads kernels and picks algorithms, which cannot be captured), the next one is
captured, and from then on a call is::

    static inputs <- copies of the arguments;   replay;   results <- copies of the static outputs

all on the stage's stream. A replay writes the same outputs each time, while the request before may still be read by a
copy or by another stage, so they are copied out. The other way, a graph for each request in flight, would save
these copies (the boundary's bytes, which are few: the planner cuts where they are) at the cost of one capture and
one set of intermediates a request in flight. Weights are not copied: their addresses stay (see `weight_buffer`).

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

WARM_UP = 2  # calls of a signature before it is captured


@dataclass(frozen=True)
class _Captured:
    graph: Graph
    inputs: dict[int, Tensor]  # by position of the argument
    outputs: Sequence[Any]


class GraphedStage:
    """A stage's function that is captured once for each signature (sizes, strides and dtypes) of its arguments.

    Args:
        function: takes the arguments in order; all it enqueues goes to the current stream.
        weights: the positions of the arguments that are the same tensor in every call.
        device, stream: where it runs; each call must be made with ``stream`` current.

    A capture that fails warns with the reason (PartitionWarning), and the stage runs without from then on.
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
        self._captured: dict[Hashable, _Captured] = {}
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
        """Free the graphs and their memory; the stage's work must be done."""
        while self._captured:
            self._captured.popitem()[1].graph.reset()
        self._works = False

    def _capture(self, signature: Hashable, arguments: Sequence[Any]) -> bool:
        """Whether the function could be captured for arguments like these."""
        try:
            # What is made under inference mode could not be written outside it.
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
        except Exception as error:  # whatever the reason, the stage runs as well without
            self._works = False
            warnings.warn(
                f"a stage on {self._device} runs without a CUDA graph: {type(error).__name__}: {error}",
                PartitionWarning,
                stacklevel=2,
            )
            return False
        self._captured[signature] = _Captured(graph, inputs, outputs)
        return True


def _signature(argument: Any) -> Hashable:
    return (argument.shape, argument.stride(), argument.dtype) if isinstance(argument, Tensor) else argument
