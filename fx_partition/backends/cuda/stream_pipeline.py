"""Run requests through stages on GPUs: the caller's thread enqueues all work and waits for nothing.

Each stage has a compute stream, and a link (`copy_stream`) with streams of its own for each device that it receives
values from. A request is a *table*: for each value, its copies by device (`DeviceValue`). Submitting a request enqueues
the copies of inputs and the kernels of stage after stage. Only events order the streams, so request 2 is in stage 0
while request 1 is in stage 1::

    cuda:0   [ r1 ][ r2 ][ r3 ]
    link          [c1]  [c2]  [c3]
    cuda:1            [ r1 ][ r2 ][ r3 ]

A link belongs to the receiving stage, not to the pair of devices: otherwise, where stages wrap around (``cuda:0,
cuda:1, cuda:0, cuda:1``), the copy for stage 3 of one request would hold up the copy for stage 1 of the next.

Two stages on one device have two streams, and hand tensors over without a copy. Weights are packed (`weight_buffer`) on
a device other than their own, and everywhere under an L2 window (`l2_persistence`).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..devices.cuda_driver import DRIVER, Driver, Event, Stream, have_happened, wait_for
from ..weights.device_copies import version_of
from .copy_stream import CopyLink, DeviceValue
from .graphed_stage import GraphedStage
from .l2_persistence import Persistence, bindings, persist
from .stage_step import CudaStep
from .weight_buffer import Pack

HOST = torch.device("cpu")


class EnqueuedRequest:
    """A pending request, all of whose work is enqueued (see `futures.PendingRequest`).

    The caller must not write its inputs before the request is finished.
    """

    def __init__(self, results: list[Any], events: list[Event], error: BaseException | None, driver: Driver) -> None:
        self._results, self._events, self._error, self._driver = results, events, error, driver

    def wait(self, until: float = math.inf) -> bool:
        """Wait until the request is finished or has failed, or until a time of ``time.monotonic``; return whether."""
        return wait_for(self._events, until)

    def take(self) -> list[Any]:
        """Wait for the results and return them, each on the device that it returns to.

        Raises:
            Exception: the exception that a stage raised.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        for result in self._results:
            if isinstance(result, Tensor) and not self._driver.is_host(device := self._driver.device_of(result)):
                self._driver.used_on(result, self._driver.current(device))
        return list(self._results)


class _Request:
    def __init__(self, num_values: int) -> None:
        # By number: the copies of a tensor by device, or a plain number.
        self.table: list[dict[torch.device, DeviceValue] | Any] = [None] * num_values
        self.events: list[Event] = []


class _StreamedStage:
    """A step with its streams, and its weights on its device."""

    def __init__(self, step: CudaStep, graphs: bool, persist: bool, driver: Driver) -> None:
        self.device = driver.device(step.device)
        self.stream = driver.stream(self.device)
        self._driver = driver
        self._links: dict[torch.device, CopyLink] = {}
        self._links_to_host: dict[torch.device, CopyLink] = {}
        self._inputs_on_host, self._outputs_on_host = step.inputs_on_host, step.outputs_on_host
        weights = {
            position: x
            for position, x in enumerate(step.inputs)
            if isinstance(x, Tensor) and position not in step.inputs_on_host
        }
        packed = {i: x for i, x in weights.items() if persist or driver.device_of(x) != self.device}
        devices = map(driver.device_of, packed.values())
        self._sources = {device for device in devices if not driver.is_host(device)}
        self.pack = Pack(list(packed.values()), self.device)
        placed = {**weights, **dict(zip(packed, self.pack.tensors, strict=True))}
        for weight in placed.values():
            driver.used_on(weight, self.stream)
        self._unpacked = [weight for i, weight in weights.items() if i not in packed]
        self._versions = [version_of(weight) for weight in self._unpacked]
        self._inputs = [placed.get(position, x) for position, x in enumerate(step.inputs)]
        self._outputs, self._last_uses = step.outputs, step.last_uses
        self._function = step.function
        if graphs and step.static:
            self._function = GraphedStage(step.function, frozenset(weights), self.device, self.stream, driver)

    def run(self, request: _Request) -> None:
        if self.pack.stale:
            self._refresh()
        self._wait_for_writes()
        waited: set[int] = set()
        arguments = [
            x if isinstance(x, Tensor) else self._value_on_host(request, x) if i in self._inputs_on_host
            else self._value(request, x, waited)
            for i, x in enumerate(self._inputs)
        ]
        with self._driver.on(self.stream):
            results = self._function(*arguments)
        ready = self.stream.record_event()
        request.events.append(ready)
        for position, (number, result) in enumerate(zip(self._outputs, results, strict=True)):
            placed = {self.device: DeviceValue(result, self.stream, ready)}
            if position in self._outputs_on_host:
                placed = {HOST: DeviceValue(result, None, None)}
            request.table[number] = placed if isinstance(result, Tensor) else result
        for number in self._last_uses:
            request.table[number] = None

    def close(self) -> None:
        if isinstance(self._function, GraphedStage):
            self._function.close()

    def _value_on_host(self, request: _Request, number: int) -> Any:
        here = bring(request.table[number], HOST, self._links_to_host, self._driver)
        if here.ready is not None:
            here.ready.synchronize()
        return here.tensor

    def _value(self, request: _Request, number: int, waited: set[int]) -> Any:
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

    def _wait_for_writes(self) -> None:
        """Let the stage wait for the caller's writes to weights of which it uses the original."""
        versions = [version_of(weight) for weight in self._unpacked]
        if versions != self._versions:
            self._versions = versions
            self.stream.wait_event(self._driver.current(self.device).record_event())

    def _refresh(self) -> None:
        callers = [self._driver.current(device) for device in self._sources]
        for caller in callers:  # these streams wrote the weights, and must not write them again before the copy
            self.stream.wait_event(caller.record_event())
        with self._driver.on(self.stream):
            self.pack.refresh()
        for caller in callers:
            caller.wait_event(self.stream.record_event())


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


class CudaPipeline:
    """Stages on GPUs for one host thread.

    Args:
        steps: in the order of execution.
        num_values: the length of a request's table.
        results: the numbers of the values that a request returns.
        inflight: the most requests in flight; submitting another waits for the oldest.
        graphs: capture the static steps (`graphed_stage`).
        persist: keep the weights in L2 (`l2_persistence`).
        homes: by value, the device that a result returns to; for others, the device of the request's first input.
        driver: the calls of ``torch.cuda``, or a fake of them for tests.

    Example::

        >>> pipeline = CudaPipeline(steps, 5, (4,), 8, graphs=True, persist=True)         # doctest: +SKIP
        >>> requests = [pipeline.submit([(0, x)]) for x in batches]                       # doctest: +SKIP
        >>> results = [request.take() for request in requests]; pipeline.close()          # doctest: +SKIP
    """

    def __init__(
        self,
        steps: Sequence[CudaStep],
        num_values: int,
        results: Sequence[int],
        inflight: int,
        *,
        graphs: bool,
        persist: bool,
        homes: Mapping[int, torch.device] | None = None,
        driver: Driver = DRIVER,
    ) -> None:
        self._homes = {number: driver.device(home) for number, home in (homes or {}).items()}
        self._num_values, self._results, self._inflight, self._driver = num_values, results, inflight, driver
        self._stages = [_StreamedStage(step, graphs, persist, driver) for step in steps]
        self._devices = list(dict.fromkeys(stage.device for stage in self._stages))
        self._home_links: dict[torch.device, dict[torch.device, CopyLink]] = {}
        self._pending: deque[list[Event]] = deque()
        self._closed = False
        for device in self._devices:  # the packs were copied on the caller's streams, which stages do not wait for
            driver.synchronize(device)
        self._persistences = [self._persist(device) for device in self._devices] if persist else []

    def submit(self, inputs: Sequence[tuple[int, Any]], until: float = math.inf) -> EnqueuedRequest:
        """Enqueue one request; its stages run after the work that is now on the caller's current streams.

        Args:
            inputs: the number and the value of each input: a tensor on any device, or a plain number.
            until: when to stop waiting for earlier requests, by ``time.monotonic``.

        Raises:
            RuntimeError: the pipeline is closed. An exception in a stage is raised by `EnqueuedRequest.take`.
            TimeoutError: the time is over; nothing was enqueued.
        """
        if self._closed:
            raise RuntimeError("the pipeline is closed")
        self._make_room(until)
        request = _Request(self._num_values)
        results, raised = [], None
        try:
            with torch.no_grad():
                home = self._enter(request, inputs)
                for stage in self._stages:
                    stage.run(request)
                results = [self._leave(request, number, self._homes.get(number, home)) for number in self._results]
        except Exception as error:
            raised = error
        self._pending.append(request.events)
        return EnqueuedRequest(results, request.events, raised, self._driver)

    def close(self) -> None:
        """Wait for the requests in flight, free the graphs and reset the L2 windows; a second call does nothing.

        Raises:
            RuntimeError: a device failed; everything is freed nonetheless.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:  # the last pushed is the first called
            for persistence in self._persistences:
                if persistence is not None:
                    stack.callback(persistence.close)
            for stage in self._stages:
                stack.callback(stage.close)
            for device in self._devices:
                stack.callback(self._driver.synchronize, device)

    def _persist(self, device: torch.device) -> Persistence | None:
        packs = [(stage.stream, stage.pack.buffer) for stage in self._stages if stage.device == device]
        return persist(device, packs, bindings(device))

    def _make_room(self, until: float) -> None:
        while self._pending and (len(self._pending) >= self._inflight or have_happened(self._pending[0])):
            oldest = self._pending.popleft()
            if not wait_for(oldest, until):
                self._pending.appendleft(oldest)
                raise TimeoutError("the limit of requests in flight is reached, and none finished within timeout=")

    def _enter(self, request: _Request, inputs: Sequence[tuple[int, Any]]) -> torch.device:
        """Write the inputs into the table and return the device of the first."""
        devices: dict[torch.device, tuple[Stream | None, Event | None]] = {}
        for number, value in inputs:
            if not isinstance(value, Tensor):
                request.table[number] = value
                continue
            device = self._driver.device_of(value)
            if device not in devices:
                stream = None if self._driver.is_host(device) else self._driver.current(device)
                devices[device] = (stream, None if stream is None else stream.record_event())
            request.table[number] = {device: DeviceValue(value, *devices[device])}
        return next(iter(devices), self._devices[-1])

    def _leave(self, request: _Request, number: int, home: torch.device) -> Any:
        if not isinstance(request.table[number], dict):
            return request.table[number]
        here = bring(request.table[number], home, self._home_links.setdefault(home, {}), self._driver)
        if here.ready is not None:
            request.events.append(here.ready)
        return here.tensor
