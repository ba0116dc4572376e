"""One stage of a pipeline with its streams: it runs requests one after another.

A request is a *table*: for each value, its copies by device (`DeviceValue`). A stage brings its inputs to its device by
links (`copy_stream`), runs its code on its compute stream, and writes its outputs into the table.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ..devices.cuda_driver import Driver, Event, Stream
from .copy_stream import CopyLink, DeviceValue
from .graphed_stage import GraphedStage
from .l2_persistence import Persistence
from .stage_step import CudaStep
from .stage_weights import StageWeights

HOST = torch.device("cpu")


class StreamedRequest:
    """The values of one request, and the events after which it is finished."""

    def __init__(self, num_values: int) -> None:
        # By number: the copies of a tensor by device, or a plain number.
        self.table: list[dict[torch.device, DeviceValue] | Any] = [None] * num_values
        self.events: list[Event] = []


class StreamedStage:
    """A step with its streams, and its weights on its device.

    Attributes:
        device, stream: where it runs.
        weights: see `stage_weights.StageWeights`.
        code: its compiled code.
        inputs: the arguments of its code: numbers of values, and the weights on its device.
        outputs, last_uses: see `stage_step.CudaStep`.
        stays_on_device: whether it neither computes on the host nor passes tensors to it.
        persistence: the L2 windows of its device, where there are any.
    """

    def __init__(self, step: CudaStep, moving: frozenset[int], graphs: bool, persist: bool, driver: Driver) -> None:
        self.device = driver.device(step.device)
        self.stream = driver.own_stream(self.device)
        self._driver = driver
        self._links: dict[torch.device, CopyLink] = {}
        self._links_to_host: dict[torch.device, CopyLink] = {}
        self._inputs_on_host, self._outputs_on_host = step.inputs_on_host, step.outputs_on_host
        self.stays_on_device = not (step.computes_on_host or step.inputs_on_host or step.outputs_on_host)
        self.persistence: Persistence | None = None
        self.weights = StageWeights(step, self.stream, persist, moving, driver)
        placed = self.weights.placed
        self.inputs = [
            placed[i] if i in placed else x.detach() if isinstance(x, Tensor) else x for i, x in enumerate(step.inputs)
        ]
        self.outputs, self.last_uses = step.outputs, step.last_uses
        self._function = self.code = step.function
        if graphs and step.static:
            self._function = GraphedStage(step.function, frozenset(placed), self.device, self.stream, driver)

    def run(self, request: StreamedRequest) -> None:
        """Enqueue the stage's work for a request."""
        self.weights.follow()
        waited: set[int] = set()
        arguments = [
            x if isinstance(x, Tensor) else self._value_on_host(request, x) if i in self._inputs_on_host
            else self._value(request, x, waited)
            for i, x in enumerate(self.inputs)
        ]
        with self._driver.on(self.stream):
            results = self._function(*arguments)
        ready = self.stream.record_event()
        request.events.append(ready)
        for position, (number, result) in enumerate(zip(self.outputs, results, strict=True)):
            placed = {self.device: DeviceValue(result, self.stream, ready)}
            if position in self._outputs_on_host:
                placed = {HOST: DeviceValue(result, None, None)}
            request.table[number] = placed if isinstance(result, Tensor) else result
        for number in self.last_uses:
            request.table[number] = None

    def window_on(self, stream: Stream) -> contextlib.AbstractContextManager[None]:
        """Let the stage's code have its L2 window on a stream that captures it."""
        if self.persistence is None:
            return contextlib.nullcontext()
        return self.persistence.window_on(stream, self.weights.pack.buffer)

    def capture(self, captures: bool) -> None:
        """Say whether the next requests are captured, where their inputs are new."""
        if isinstance(self._function, GraphedStage):
            self._function.captures = captures

    def close(self) -> None:
        """Free the graph; all work of the stage must be finished."""
        if isinstance(self._function, GraphedStage):
            self._function.close()

    def _value_on_host(self, request: StreamedRequest, number: int) -> Any:
        here = bring(request.table[number], HOST, self._links_to_host, self._driver)
        if here.ready is not None:
            here.ready.synchronize()
        return here.tensor

    def _value(self, request: StreamedRequest, number: int, waited: set[int]) -> Any:
        """Return the value on the stage's device, and let the stage's stream wait until it is written."""
        if not isinstance(request.table[number], dict):
            return request.table[number]
        here = bring(request.table[number], self.device, self._links, self._driver)
        if here.stream is not self.stream:
            if here.ready is not None and id(here.ready) not in waited:
                self.stream.wait_event(here.ready)
                waited.add(id(here.ready))
            self._driver.used_on(here.tensor, self.stream)
        return here.tensor


def bring(
    copies: dict[torch.device, DeviceValue], device: torch.device, links: dict[torch.device, CopyLink], driver: Driver
) -> DeviceValue:
    """Return a value on ``device``; copy it there if needed, and keep the copy for later stages."""
    if device not in copies:
        source = next(iter(copies))
        if source not in links:
            links[source] = CopyLink(source, device, driver)
        copies[device] = links[source].send(copies[source])
    return copies[device]
