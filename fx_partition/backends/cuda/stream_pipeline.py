"""Run requests through stages on GPUs: the caller's thread enqueues all work and waits for nothing.

Requests of captured sizes are one launch each (`request_graph`). For others each stage is enqueued in turn, as follows.

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
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionWarning

from ..devices.cuda_driver import DRIVER, Driver, Event, Stream, have_happened, wait_for
from ..weights.moved_weights import Moves
from .copy_stream import CopyLink, DeviceValue
from .enqueued_request import EnqueuedRequest
from .graphed_stage import reason
from .l2_persistence import Persistence, bindings, persist
from .request_graph import RequestGraphs
from .stage_step import CudaStep
from .stage_weights import packed_positions
from .streamed_stage import StreamedRequest, StreamedStage, bring

WARM_UP = 2  # requests before the one that is captured: the first loads and tunes kernels, the second is as all others


class CudaPipeline:
    """Stages on GPUs for one host thread.

    Args:
        steps: in the order of execution.
        num_values: the length of a request's table.
        results: the numbers of the values that a request returns.
        inflight: the most requests in flight; submitting another waits for the oldest.
        graphs: capture whole requests of the sizes of ``examples`` (`request_graph`), or, where a stage uses the host,
            the static steps (`graphed_stage`).
        persist: keep the weights in L2 (`l2_persistence`).
        examples: the inputs of requests, as for `submit`, with which the stages are warmed up before the first request:
            code is loaded and tuned, and graphs are captured. If one fails, a PartitionWarning gives the reason.
        moves: which weights of the model become the copies of its stages; None: none.
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
        examples: Sequence[Sequence[tuple[int, Any]]] = (),
        moves: Moves | None = None,
        homes: Mapping[int, torch.device] | None = None,
        driver: Driver = DRIVER,
    ) -> None:
        self._homes = {number: driver.device(home) for number, home in (homes or {}).items()}
        self._num_values, self._results, self._inflight, self._driver = num_values, results, inflight, driver
        moving = [frozenset[int]()] * len(steps)
        if moves is not None:
            packed = [[step.weights[i] for i in packed_positions(step, persist, driver)] for step in steps]
            moving = moves.to_stages(packed)
        self._stages = [StreamedStage(*each, graphs, persist, driver) for each in zip(steps, moving, strict=True)]
        self._devices = list(dict.fromkeys(stage.device for stage in self._stages))
        self._home_links: dict[torch.device, dict[torch.device, CopyLink]] = {}
        self._pending: deque[tuple[list[Event], list[Any]]] = deque()  # events, and the tensors kept until then
        self._graphs = RequestGraphs(self._stages, results, self._homes, inflight, driver)
        self._closed = False
        for device in self._devices:  # the packs were copied on the caller's streams, which stages do not wait for
            driver.synchronize(device)
        self._persistences = [self._persist(device) for device in self._devices] if persist else []
        for device, persistence in zip(self._devices, self._persistences, strict=False):
            for stage in self._stages:
                if stage.device == device:
                    stage.persistence = persistence
        try:
            with driver.keep_random_state(self._devices):
                for inputs in examples:
                    self._warm_up(inputs, graphs)
        except BaseException:
            self.close()
            raise

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
        if self._graphs.in_use:
            self._see_writes(until)
            launched = self._launch(inputs)
            if launched is not None:
                return launched
        request = StreamedRequest(self._num_values)
        results, raised = [], None
        try:
            with torch.no_grad():
                home = self._enter(request, inputs)
                for stage in self._stages:
                    stage.run(request)
                results = [self._leave(request, number, self._homes.get(number, home)) for number in self._results]
        except Exception as error:
            raised = error
        self._pending.append((request.events, []))
        return EnqueuedRequest(results, request.events, raised, self._driver)

    def _launch(self, inputs: Sequence[tuple[int, Any]]) -> EnqueuedRequest | None:
        """Launch the graph of a request; None if its sizes are not captured."""
        try:
            with torch.no_grad():
                launched = self._graphs.run(inputs)
        except Exception as error:  # of the device, which cannot go on
            return EnqueuedRequest([], [], error, self._driver)
        if launched is None:
            return None
        kept = [*launched.results, *(value for _, value in inputs)]
        self._pending.append((launched.events, kept))
        return EnqueuedRequest(
            launched.results, launched.events, None, self._driver, launched.owners, kept, launched.streams
        )

    def close(self) -> None:
        """Wait for the requests in flight, free the graphs and reset the L2 windows; a second call does nothing.

        Raises:
            RuntimeError: a device failed; everything is freed nonetheless.
        """
        if self._closed:
            return
        self._closed = True
        stages, self._stages = self._stages, []  # their streams and copies of weights are free when this returns
        with contextlib.ExitStack() as stack:  # the last pushed is the first called
            for persistence in self._persistences:
                if persistence is not None:
                    stack.callback(persistence.close)
            for stage in stages:
                stack.callback(stage.close)
            stack.callback(self._graphs.close)
            for device in self._devices:
                stack.callback(self._driver.synchronize, device)

    def _warm_up(self, inputs: Sequence[tuple[int, Any]], graphs: bool) -> None:
        """Run requests of these inputs, and capture another: in one graph, or else stage by stage."""
        try:
            for _ in range(WARM_UP):
                self.submit(inputs).take()
            if graphs and not self._capture(inputs):
                for stage in self._stages:
                    stage.capture(True)
                self.submit(inputs).take()
        except Exception as error:
            warnings.warn(
                "the stages could not be warmed up with the example inputs, so the first requests are slower and none "
                f"uses CUDA graphs: {type(error).__name__}: {error}",
                PartitionWarning,
                stacklevel=3,
            )
        finally:
            for stage in self._stages:
                stage.capture(False)

    def _capture(self, inputs: Sequence[tuple[int, Any]]) -> bool:
        """Try to capture whole requests of these inputs; return whether it worked."""
        if not self._graphs.can_capture(inputs):
            return False
        try:
            self._graphs.capture(inputs)
            return True
        except Exception as error:  # whatever the reason, requests can run without
            warnings.warn(
                f"requests like the example run without one CUDA graph for all stages: {reason(error)}",
                PartitionWarning,
                stacklevel=4,
            )
            return False

    def _persist(self, device: torch.device) -> Persistence | None:
        packs = [(stage.stream, stage.weights.pack.buffer) for stage in self._stages if stage.device == device]
        return persist(device, packs, bindings(device))

    def _make_room(self, until: float) -> None:
        while self._pending and (len(self._pending) >= self._inflight or have_happened(self._pending[0][0])):
            if not wait_for(self._pending[0][0], until):
                raise TimeoutError("the limit of requests in flight is reached, and none finished within timeout=")
            self._pending.popleft()

    def _see_writes(self, until: float) -> None:
        """Copy weights that the caller wrote again, while no graph reads them."""
        if not any(stage.weights.written for stage in self._stages):
            return
        if not all(wait_for(events, until) for events, _ in self._pending):
            raise TimeoutError("weights were written, and the requests before did not finish within timeout=")
        for stage in self._stages:
            stage.weights.follow()
        for device in self._devices:
            self._driver.synchronize(device)

    def _enter(self, request: StreamedRequest, inputs: Sequence[tuple[int, Any]]) -> torch.device:
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

    def _leave(self, request: StreamedRequest, number: int, home: torch.device) -> Any:
        if not isinstance(request.table[number], dict):
            return request.table[number]
        here = bring(request.table[number], home, self._home_links.setdefault(home, {}), self._driver)
        if here.ready is not None:
            request.events.append(here.ready)
        return here.tensor
