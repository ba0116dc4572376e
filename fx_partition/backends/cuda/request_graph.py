"""A whole request as one CUDA graph: all stages on all devices and the copies between them, started by one launch.

Terms
-----
slot
    Streams and memory for one request at a time. Requests take the slots in turn, so as many run at the same time.
launch stream
    The stream of a slot on the device where a request's inputs arrive. It orders the requests of a slot.
static
    A tensor of a slot that a graph reads or writes; it stays at its address.

Submitting a request is the same few calls for any number of stages::

    launch stream    static inputs <- inputs;   launch the graph;   results <- static results

    in the graph     fork -+- cuda:0  [ stage 0 ][ copy ]
                           +- cuda:1                     [ stage 1 ] - join

The graphs of two slots may run at the same time on one device, so they share nothing that is written. Each slot has
memory pools of its own, and streams of its own, as libraries keep their workspaces by stream. Within a slot, a device
has one stream, which orders all work there; torch orders a copy between two devices on both.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..devices.cuda_driver import Driver, Event, Graph, Stream
from .streamed_stage import HOST, StreamedStage

#: The number and the value of each input of a request.
Inputs = Sequence[tuple[int, Any]]

#: The most slots; as many stages are busy at the same time.
MOST_SLOTS = 16


@dataclass(frozen=True)
class _Captured:
    """The graph of a request of one size, in one slot.

    Attributes:
        inputs: the static inputs, in the order of the request's tensors.
        results: for each result its static tensor, on its home or, for the host, where it is computed; or a number.
        devices: the device of each result that is a tensor, and whether it returns to the host.
    """

    graph: Graph
    inputs: Sequence[Tensor]
    results: Sequence[Any]
    devices: Sequence[tuple[torch.device, bool] | None]


@dataclass(frozen=True)
class LaunchedRequest:
    """A request whose graph is launched.

    Attributes:
        results: its results.
        events: those after which it is finished.
        owners: for each result the stream whose memory it has; None on the host.
        streams: one of each device that it uses.
    """

    results: list[Any]
    events: list[Event]
    owners: list[Stream | None]
    streams: Sequence[Stream]


class RequestSlot:
    """Streams and memory for one request at a time.

    Args:
        stages: all stages, in order.
        launch: the device where inputs arrive.
        devices: the other devices that requests use.
    """

    def __init__(
        self, stages: Sequence[StreamedStage], launch: torch.device, devices: Sequence[torch.device], driver: Driver
    ) -> None:
        self._stages, self._launch, self._driver = stages, launch, driver
        self._streams = {device: driver.own_stream(device) for device in (launch, *devices)}
        self._pool = driver.graph_pool(devices)
        self._captured: dict[Hashable, _Captured] = {}

    def capture(self, key: Hashable, inputs: Inputs, results: Sequence[int], homes: Sequence[torch.device]) -> None:
        """Capture a request of the sizes of ``inputs``.

        Args:
            results: the numbers of the values that a request returns.
            homes: the device that each of them returns to.

        Raises:
            Exception: of any kind, if the work cannot be captured.
        """
        driver, launch = self._driver, self._launch
        with torch.inference_mode(False), torch.no_grad():
            with driver.on(self._streams[launch]):
                statics = {n: driver.empty(value, launch) for n, value in inputs if isinstance(value, Tensor)}
            for number, value in inputs:
                if number in statics and statics[number].stride() != value.stride():
                    raise RuntimeError(f"input {number} of the request has gaps or overlaps itself")
            devices: list[tuple[torch.device, bool] | None] = []

            def enqueue() -> list[Any]:
                devices.clear()
                table: dict[int, Any] = {n: {launch: statics[n]} if n in statics else value for n, value in inputs}
                for stage in self._stages:
                    self._enqueue(stage, table)
                left = []
                for number, home in zip(results, homes, strict=True):
                    value = table[number]
                    if not isinstance(value, dict):
                        left.append(value)
                        devices.append(None)
                        continue
                    to_host = driver.is_host(home)
                    device = next(iter(value)) if to_host else home
                    left.append(self._bring(value, device))
                    devices.append((device, to_host))
                return left

            others = [stream for device, stream in self._streams.items() if device != launch]
            graph, left = driver.capture(enqueue, self._streams[launch], self._pool, others)
        self._captured[key] = _Captured(graph, list(statics.values()), left, devices)

    def run(self, key: Hashable, tensors: Sequence[Tensor]) -> LaunchedRequest:
        """Launch a request of a captured size; ``tensors`` must live until it is finished."""
        captured, driver, launch = self._captured[key], self._driver, self._streams[self._launch]
        owners: list[Stream | None] = []
        results: list[Any] = []
        arrive = {device for tensor in tensors if not driver.is_host(device := driver.device_of(tensor))}
        for static, place in zip(captured.results, captured.devices, strict=True):
            on_gpu = place is not None and not place[1]
            # Memory of the caller's stream, so that it can be freed like any other tensor of the caller's.
            owners.append(driver.current(place[0]) if place is not None and on_gpu else None)
            results.append(driver.empty(static, place[0]) if place is not None and on_gpu else static)
            if place is not None and on_gpu:
                arrive.add(place[0])
        for device in arrive:
            launch.wait_event(driver.current(device).record_event())
        with driver.on(launch):
            for static, tensor in zip(captured.inputs, tensors, strict=True):
                driver.copy_into(static, tensor)
            captured.graph.replay()
        return LaunchedRequest(results, self._copy_results(captured, results), owners, [*self._streams.values()])

    def close(self) -> None:
        """Free the graphs; the work of the slot must be finished."""
        while self._captured:
            self._captured.popitem()[1].graph.reset()

    def _copy_results(self, captured: _Captured, results: list[Any]) -> list[Event]:
        """Copy the static results into ``results``, each on the slot's stream of its device; return the last events."""
        launch = self._streams[self._launch]
        launched: Event | None = None
        used: list[Stream] = []
        for position, (static, place) in enumerate(zip(captured.results, captured.devices, strict=True)):
            if place is None:
                continue
            device, to_host = place
            stream = self._streams[device]
            if stream is not launch and stream not in used:
                launched = launched or launch.record_event()
                stream.wait_event(launched)
            if stream not in used:
                used.append(stream)
            with self._driver.on(stream):
                if to_host:
                    results[position] = self._driver.copy(static, HOST)
                else:
                    self._driver.copy_into(results[position], static)
        events = [stream.record_event() for stream in used or [launch]]
        for stream, event in zip(used, events, strict=False):
            if stream is not launch:  # the next request of the slot writes the static results again
                launch.wait_event(event)
        return events

    def _enqueue(self, stage: StreamedStage, table: dict[int, Any]) -> None:
        arguments = []
        for x in stage.inputs:
            value = x if isinstance(x, Tensor) else table[x]
            arguments.append(self._bring(value, stage.device) if isinstance(value, dict) else value)
        stream = self._streams[stage.device]
        with self._driver.on(stream), stage.window_on(stream):
            results = stage.code(*arguments)
        for number, result in zip(stage.outputs, results, strict=True):
            table[number] = {stage.device: result} if isinstance(result, Tensor) else result
        for number in stage.last_uses:
            table.pop(number, None)

    def _bring(self, copies: dict[torch.device, Tensor], device: torch.device) -> Tensor:
        """Return a value on ``device``; copy it there if needed, and keep the copy for later stages."""
        if device not in copies:
            source = next(iter(copies))
            with self._driver.on(self._streams[device], self._streams[source]):
                copies[device] = self._driver.copy(copies[source], device)
        return copies[device]


class RequestGraphs:
    """The graphs of whole requests, for the sizes that are captured.

    Args:
        stages: all stages, in order.
        results: the numbers of the values that a request returns.
        homes: by value, the device that a result returns to; for others, the device of the request's first input.
        inflight: the most requests in flight.
    """

    def __init__(
        self,
        stages: Sequence[StreamedStage],
        results: Sequence[int],
        homes: Mapping[int, torch.device],
        inflight: int,
        driver: Driver,
    ) -> None:
        self._stages: Sequence[StreamedStage] = stages
        self._results, self._homes, self._driver = results, homes, driver
        # One more than stages, so that a request's copies overlap with the work of as many others as keep all busy.
        self._count = min(inflight, len(stages) + 1, MOST_SLOTS)
        self._slots: list[RequestSlot] = []
        self._arrival: torch.device | None = None
        self._keys: set[Hashable] = set()
        self._next = 0

    def can_capture(self, inputs: Inputs) -> bool:
        """Return whether no stage uses the host, and the inputs are on one device, the same for all sizes."""
        arrivals = {self._driver.device_of(value) for _, value in inputs if isinstance(value, Tensor)}
        return (
            all(stage.stays_on_device for stage in self._stages)
            and len(arrivals) == 1
            and (self._arrival is None or arrivals == {self._arrival})
        )

    def capture(self, inputs: Inputs) -> None:
        """Capture requests of the sizes of ``inputs``, for which `can_capture`.

        Raises:
            Exception: of any kind, if the work cannot be captured; then no request of these sizes uses a graph.
        """
        driver = self._driver
        arrival = next(driver.device_of(value) for _, value in inputs if isinstance(value, Tensor))
        homes = [self._homes.get(number, arrival) for number in self._results]
        if not self._slots:
            launch = self._stages[0].device if driver.is_host(arrival) else arrival
            gpus = (device for device in homes if not driver.is_host(device))
            devices = [d for d in dict.fromkeys([*(stage.device for stage in self._stages), *gpus]) if d != launch]
            self._slots = [RequestSlot(self._stages, launch, devices, driver) for _ in range(self._count)]
        key = self._key(inputs)
        try:
            for slot in self._slots:
                slot.capture(key, inputs, self._results, homes)
        except BaseException:
            if not self._keys:
                self._drop_slots()
            raise
        self._arrival = arrival
        self._keys.add(key)

    def run(self, inputs: Inputs) -> LaunchedRequest | None:
        """Launch a request, whose tensors must live until it is finished; None if its sizes are not captured."""
        if not self._keys or (key := self._key(inputs)) not in self._keys:
            return None
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        return slot.run(key, [value for _, value in inputs if isinstance(value, Tensor)])

    @property
    def in_use(self) -> bool:
        """Whether any size is captured."""
        return bool(self._keys)

    def close(self) -> None:
        """Free the graphs and their memory; all work must be finished."""
        self._keys.clear()
        self._stages = []
        self._drop_slots()

    def _drop_slots(self) -> None:
        while self._slots:
            self._slots.pop().close()

    def _key(self, inputs: Inputs) -> Hashable:
        return tuple(
            (number, value.shape, value.dtype, self._driver.device_of(value)) if isinstance(value, Tensor)
            else (number, value)
            for number, value in inputs
        )
