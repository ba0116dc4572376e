"""A stream of requests through stages that run, whatever runs them."""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from numbers import Integral, Real
from types import TracebackType
from typing import Any, Protocol

import torch

from fx_partition.common.errors import PartitionError
from fx_partition.common.own_process import OwnProcess
from fx_partition.passes.plan.plan import Plan

from .futures import Collector, PendingRequest, RequestFuture, Submitted
from .request_signature import Signature


class Runtime(Protocol):
    """What runs the stages; see `threads.runtime.LocalRuntime` and `cuda.runtime.CudaRuntime`.

    ``close`` may come while other threads are in ``submit``: each of these starts its request, which is then finished,
    or raises RuntimeError.
    """

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> PendingRequest:
        """Start a request; waits while as many are in flight as may be, until a time of ``time.monotonic``.

        Raises:
            RuntimeError: the runtime is closed, or was while this waited; nothing was started.
            TimeoutError: the time is over; nothing was started.
        """

    def close(self) -> None: ...


#: Each takes a slot of a ring and holds its tensors; far fewer keep all stages busy.
MOST_INFLIGHT = 1 << 16


class Pipeline:
    """Stages that run, each on its own device; made by `backends.pipeline.pipeline`.

    Results are plain tensors without gradients, also under ``torch.inference_mode``. Requests may be submitted from
    several threads. What a model writes (a cache, a counter) is written in the order of the requests. Its threads are
    those of the process that made it: in a forked child every use raises RuntimeError, and closing it does nothing.

    A wait ends by ``pipe(x, timeout=seconds)``, ``pipe.submit(x, timeout=seconds)`` and
    ``pipe.submit(x).result(timeout=seconds)``, each with TimeoutError. If the model itself was captured with a keyword
    argument of this name, ``timeout`` is the model's.

    Attributes:
        plan: how the model was cut.
    """

    def __init__(self, plan: Plan, signature: Signature, runtime: Runtime, inflight: int) -> None:
        self.plan = plan
        self._signature = signature
        self._runtime = runtime
        self._inflight = inflight
        self._collector = Collector(signature)
        self._process = OwnProcess()
        self._close = weakref.finalize(self, _shut_down, runtime, self._collector, self._process)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one request and wait for it.

        Args:
            args, kwargs: as the model takes them; and ``timeout``, in seconds: how long to wait at most.

        Raises:
            ValueError, TypeError: not what the pipeline was made for; nothing was started.
            RuntimeError: the pipeline is closed, or belongs to another process.
            TimeoutError: the time is over. What was started goes on, so the tensors must not change before `close`.
            Exception: what a stage raised.
        """
        until = self._until(kwargs)
        request, numbers = self._start(args, kwargs, until)
        if not request.wait(until):
            raise TimeoutError("the request is not finished in the time that timeout= gives it; it goes on")
        return self._signature.results(request.take(), numbers)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a request; waits while as many are in flight as may be.

        Args:
            args, kwargs: as the model takes them; the tensors must not change before the request is finished. And
                ``timeout``, in seconds: how long to wait until it may start.

        Returns:
            A future of what the model returns, or of the exception that a stage raised.

        Raises:
            ValueError, TypeError: not what the pipeline was made for; nothing was started.
            RuntimeError: the pipeline is closed, or was while this waited, or belongs to another process; nothing was
                started.
            TimeoutError: the time is over; nothing was started.
        """
        until = self._until(kwargs)
        future = RequestFuture(self._process)
        future.set_running_or_notify_cancel()
        self._collector.add(future, self._start(args, kwargs, until))
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
            RuntimeError: the pipeline is closed, or belongs to another process.
            Exception: what a stage raised, when its request's turn has come; the rest is dropped.
        """
        self._process.check("the pipeline")
        check_inflight(inflight)
        limit = self._inflight if inflight is None else min(inflight, self._inflight)
        return self._stream(requests, limit, return_exceptions)

    def _stream(self, requests: Iterable[Any], limit: int, return_exceptions: bool) -> Iterator[Any]:
        submitted: deque[Submitted] = deque()
        stream = iter(requests)
        try:
            while True:
                for request in islice(stream, limit - len(submitted)):
                    args, kwargs = _arguments(request)
                    submitted.append(self._start(args, kwargs))
                if not submitted:
                    return
                # Waking this thread costs a stage some of its core: once for half of what is in flight will do.
                self._wait(submitted[(len(submitted) - 1) // 2][0])
                for _ in range((len(submitted) + 1) // 2):
                    yield self._finish(submitted.popleft(), return_exceptions)
        finally:
            for pending, _ in submitted:
                if self._process.is_this:
                    pending.wait()

    def _start(self, args: Sequence[Any], kwargs: Mapping[str, Any], until: float = math.inf) -> Submitted:
        self._process.check("the pipeline")
        if not self._close.alive:
            raise RuntimeError("the pipeline is closed")
        tensors, numbers = self._signature.read(args, kwargs)
        return self._runtime.submit(self._signature.numbers, tensors, until), numbers

    def _wait(self, request: PendingRequest) -> None:
        self._process.check("the pipeline")
        request.wait()

    def _finish(self, submitted: Submitted, return_exceptions: bool) -> Any:
        request, numbers = submitted
        self._wait(request)
        try:
            return self._signature.results(request.take(), numbers)
        except Exception as error:
            if return_exceptions:
                return error
            raise

    def _until(self, kwargs: dict[str, Any]) -> float:
        """When a wait is over, by ``time.monotonic``; takes ``timeout`` out of ``kwargs``, unless it is the model's."""
        if "timeout" not in kwargs or "timeout" in self._signature.keywords:
            return math.inf
        timeout = kwargs.pop("timeout")
        if timeout is None:
            return math.inf
        if isinstance(timeout, bool) or not isinstance(timeout, Real) or not float(timeout) >= 0:
            raise PartitionError(f"timeout={timeout!r} is not a number of seconds, 0 or more; None waits without end")
        return time.monotonic() + float(timeout)

    def close(self) -> None:
        """Finish what is in flight and stop the stages; a second call does nothing.

        Other threads may be submitting meanwhile: what was started before is finished, all else is refused. In a forked
        child it does nothing.
        """
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shut_down(runtime: Runtime, collector: Collector, process: OwnProcess) -> None:
    if not process.is_this:  # what would be waited for is in the parent
        return
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
