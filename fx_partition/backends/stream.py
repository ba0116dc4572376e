"""A stream of requests through stages that run, whatever runs them."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from numbers import Integral
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol

import torch

from fx_partition.passes.errors import PartitionError
from fx_partition.passes.plan import Plan

from .signature import Signature


class Ticket(Protocol):
    """A request in flight."""

    def wait(self) -> None: ...

    def take(self) -> list[torch.Tensor]: ...


class Runtime(Protocol):
    """What runs the stages; see `local.runtime.LocalRuntime` and `cuda_runtime.CudaRuntime`.

    ``close`` may come while other threads are in ``submit``: each of these starts its request, which is then finished,
    or raises RuntimeError.
    """

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor]) -> Ticket: ...

    def close(self) -> None: ...


#: Each takes a slot of a ring and holds its tensors; far fewer keep all stages busy.
MOST_INFLIGHT = 1 << 16

_Waiting = tuple[Ticket, dict[Any, int]]


class Pipeline:
    """Stages that run, each on its own device; made by `pipeline.pipeline`.

    Results are plain tensors without gradients, also under ``torch.inference_mode``. Requests may be submitted from
    several threads. What a model writes (a cache, a counter) is written in the order of the requests.

    Attributes:
        plan: how the model was cut.
    """

    def __init__(self, plan: Plan, signature: Signature, runtime: Runtime, inflight: int) -> None:
        self.plan = plan
        self._signature = signature
        self._runtime = runtime
        self._inflight = inflight
        self._collector = _Collector(signature)
        self._close = weakref.finalize(self, _shut_down, runtime, self._collector)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one request and wait for it."""
        ticket, numbers = self._start(args, kwargs)
        ticket.wait()
        return self._signature.results(ticket.take(), numbers)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a request; waits while as many are in flight as may be.

        Args:
            args, kwargs: as the model takes them; the tensors must not change before the request is finished.

        Returns:
            A future of what the model returns, or of the exception that a stage raised.

        Raises:
            ValueError, TypeError: not what the pipeline was made for; nothing was started.
            RuntimeError: the pipeline is closed, or was while this waited; nothing was started.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._collector.add(future, self._start(args, kwargs))
        return future

    def map(
        self, requests: Iterable[Any], *, inflight: int | None = None, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Results of a stream of requests, in their order.

        Args:
            requests: each a tensor, a sequence of positional or a mapping of keyword arguments; taken only as results
                are taken, but for those in flight.
            inflight: how many requests may be in flight; default, and at most: as many as the pipeline allows.
            return_exceptions: whether an exception is yielded in place of its result, and not raised.

        Raises:
            PartitionError (a ValueError): at once, where ``inflight`` is not a number from 1 to ``MOST_INFLIGHT``.
            Exception: what a stage raised, when its request's turn has come; the rest is dropped.
        """
        check_inflight(inflight)
        limit = self._inflight if inflight is None else min(inflight, self._inflight)
        return self._stream(requests, limit, return_exceptions)

    def _stream(self, requests: Iterable[Any], limit: int, return_exceptions: bool) -> Iterator[Any]:
        waiting: deque[_Waiting] = deque()
        stream = iter(requests)
        try:
            while True:
                for request in islice(stream, limit - len(waiting)):
                    args, kwargs = _arguments(request)
                    waiting.append(self._start(args, kwargs))
                if not waiting:
                    return
                # Waking this thread costs a stage some of its core: once for half of what is in flight will do.
                waiting[(len(waiting) - 1) // 2][0].wait()
                for _ in range((len(waiting) + 1) // 2):
                    yield self._finish(waiting.popleft(), return_exceptions)
        finally:
            for ticket, _ in waiting:
                ticket.wait()

    def _start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Waiting:
        if not self._close.alive:
            raise RuntimeError("the pipeline is closed")
        tensors, numbers = self._signature.read(args, kwargs)
        return self._runtime.submit(self._signature.numbers, tensors), numbers

    def _finish(self, waiting: _Waiting, return_exceptions: bool) -> Any:
        ticket, numbers = waiting
        ticket.wait()
        try:
            return self._signature.results(ticket.take(), numbers)
        except Exception as error:
            if return_exceptions:
                return error
            raise

    def close(self) -> None:
        """Finish what is in flight and stop the stages; a second call does nothing.

        Other threads may be submitting meanwhile: what was started before is finished, all else is refused.
        """
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """Gives futures their results, on a thread that is started with the first of them."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._queue: SimpleQueue[tuple[Future[Any], _Waiting] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    def add(self, future: Future[Any], waiting: _Waiting) -> None:
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fx_partition-collector", daemon=True)
                    self._thread.start()
                self._queue.put((future, waiting))
                return
        self._settle(future, waiting)  # closed since the request was started: nobody else will

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._settle(*item)
            del item  # nothing of a request may outlive it here

    def _settle(self, future: Future[Any], waiting: _Waiting) -> None:
        ticket, numbers = waiting
        try:
            ticket.wait()
            result = self._signature.results(ticket.take(), numbers)
        except BaseException as error:  # whatever a stage raised is its request's, and others wait for theirs
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del future, waiting, ticket  # an error's traceback holds this frame, and the future holds the error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._queue.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():  # which a callback may be on
            self._thread.join()


def _shut_down(runtime: Runtime, collector: _Collector) -> None:
    try:
        runtime.close()
    finally:  # what was started is finished by now, or has failed
        collector.close()


def check_inflight(inflight: int | None) -> None:
    """Refuse a number of requests in flight that lets none in, or more than a ring has slots for; None: the default.

    Raises:
        PartitionError: it is not a number from 1 to ``MOST_INFLIGHT``.
    """
    if inflight is None:
        return
    if isinstance(inflight, bool) or not isinstance(inflight, Integral):
        raise PartitionError(f"inflight={inflight!r} is not a whole number; it is 1 or more, and left out the default")
    if inflight < 1:
        raise PartitionError(f"inflight={inflight} lets no request in; it is 1 or more, and left out the default")
    if inflight > MOST_INFLIGHT:
        raise PartitionError(
            f"inflight={inflight} is more than the {MOST_INFLIGHT} requests that may be in flight; leave it out for "
            "the default, four a stage thread, and let submit wait"
        )


def _arguments(request: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(request, Mapping):
        return (), request
    if isinstance(request, torch.Tensor):
        return (request,), {}
    return tuple(request), {}
