"""`Pipeline`: the object that a user streams requests through, on any runtime."""

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
from .request_signature import RequestSignature
from .sessions import Sessions


class Runtime(Protocol):
    """Runs the stages: `threads.runtime.LocalRuntime` or `cuda.runtime.CudaRuntime`.

    ``close`` may be called while other threads are in ``submit``. Each of them either starts its request, which then
    finishes, or raises RuntimeError.
    """

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> PendingRequest:
        """Start a request. While the limit of requests in flight is reached, wait until a time of ``time.monotonic``.

        Raises:
            RuntimeError: the runtime is closed, or was closed during the wait; nothing was started.
            TimeoutError: the time is over; nothing was started.
        """

    def close(self) -> None: ...


#: Each request in flight has a slot of a ring and holds its tensors; far fewer keep all stages busy.
MOST_INFLIGHT = 1 << 16
_NO_SESSIONS = "say how many there are when you make it, fx_partition.pipeline(..., sessions=8)"


class Pipeline:
    """A running pipeline, each stage on its own device; `fx_partition.pipeline` makes one.

    Results are plain tensors without gradients, also under ``torch.inference_mode``. Several threads may submit
    requests. A state that the model writes (a cache, a counter) is written in the order of the requests. The threads
    belong to the process that made the pipeline: in a forked child every use raises RuntimeError, and closing does
    nothing.

    ``pipe(x, timeout=seconds)``, ``pipe.submit(x, timeout=seconds)`` and ``pipe.submit(x).result(timeout=seconds)``
    limit the wait, and raise TimeoutError when it is over. If the model itself was captured with a keyword argument
    ``timeout``, then ``timeout`` is the model's.

    Where the pipeline has sessions, each request says whose it is: ``pipe(x, session=3)``. It reads and writes the
    state of that session alone. The requests of a session run in the order in which they were submitted; requests of
    different sessions are in flight at the same time. A request that fails leaves its session's state as the stages
    before the failure wrote it, as eager mode does: `reset` the session.

    Attributes:
        plan: how the model is split.
    """

    def __init__(
        self,
        plan: Plan,
        signature: RequestSignature,
        runtime: Runtime,
        inflight: int,
        sessions: Sessions | None = None,
    ) -> None:
        self.plan = plan
        self._sessions = sessions
        self._signature = signature
        self._runtime = runtime
        self._inflight = inflight
        self._collector = Collector(signature)
        self._process = OwnProcess()
        self._close = weakref.finalize(self, _shut_down, runtime, self._collector, self._process)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one request and wait for it.

        Args:
            args, kwargs: the arguments of the model, ``timeout``: the most seconds to wait, and ``session``: the
                number of the request's session, from 0, where there are sessions.

        Raises:
            ValueError, TypeError: the arguments do not fit the pipeline's signature; nothing was started.
            RuntimeError: the pipeline is closed, or belongs to another process.
            TimeoutError: the time is over. A request that was started goes on, so the tensors must not change before
                `close`.
            Exception: the exception that a stage raised.
        """
        until = self._until(kwargs)
        request, numbers = self._start(args, kwargs, until)
        if not request.wait(until):
            raise TimeoutError("the request is not finished within timeout=; it goes on")
        return self._signature.results(request.take(), numbers)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a request; wait first while the limit of requests in flight is reached.

        Args:
            args, kwargs: the arguments of the model, ``timeout``: the most seconds to wait until the request starts,
                and ``session``: the number of the request's session, from 0, where there are sessions. The tensors
                must not change before the request is finished.

        Returns:
            A future of the model's output; it raises the exception that a stage raised.

        Raises:
            ValueError, TypeError: the arguments do not fit the pipeline's signature; nothing was started.
            RuntimeError: the pipeline is closed, was closed during the wait, or belongs to another process; nothing
                was started.
            TimeoutError: the time is over; nothing was started.
        """
        until = self._until(kwargs)
        future = RequestFuture(self._process)
        future.set_running_or_notify_cancel()
        self._collector.add(future, self._start(args, kwargs, until))
        return future

    def map(
        self,
        requests: Iterable[Any],
        *,
        inflight: int | None = None,
        return_exceptions: bool = False,
        session: int | None = None,
    ) -> Iterator[Any]:
        """Yield the results of a stream of requests, in their order.

        Args:
            requests: each request is a tensor, a sequence of positional arguments or a mapping of keyword arguments.
                The iterable is read lazily: never further ahead than ``inflight`` requests.
            inflight: how many requests may be in flight. Default and maximum: the limit of the pipeline.
            return_exceptions: yield the exception of a failed request as its result, and do not raise it.
            session: the session of all these requests, where there are sessions.

        Raises:
            PartitionError (a ValueError): ``inflight`` is not a number from 1 to ``MOST_INFLIGHT``; raised at once.
            RuntimeError: the pipeline is closed, or belongs to another process.
            Exception: the exception that a stage raised, in the place of its result; later results are dropped.
        """
        self._process.check("the pipeline")
        check_inflight(inflight)
        limit = self._inflight if inflight is None else min(inflight, self._inflight)
        whose = {} if session is None else {"session": session}
        return self._stream(requests, limit, return_exceptions, whose)

    def reset(self, session: int) -> None:
        """Give a session the state that the model's own buffers hold, as before its first request.

        Requests in flight finish with the state that they have. Those submitted from now on see the new one.

        Raises:
            PartitionError (a ValueError): there is no such session, or the pipeline has no sessions.
            RuntimeError: the pipeline belongs to another process.

        Example::

            >>> pipe.reset(3)                                    # doctest: +SKIP
        """
        self._state_of_sessions().reset(session)

    def state(self, session: int) -> dict[str, torch.Tensor]:
        """Return the state of a session: its tensors by their names in the model, ``{"key_cache_0": tensor}``.

        They are the tensors that the stages read and write, not copies. Read or write them only while no request of
        the session is in flight: to keep a session for later, or to bring in the caches of a prompt that ran elsewhere.
        After a `reset` the session has other tensors.

        Raises:
            PartitionError (a ValueError): there is no such session, or the pipeline has no sessions.
            RuntimeError: the pipeline belongs to another process.

        Example::

            >>> pipe.state(3)["key_cache_0"].copy_(keys)         # doctest: +SKIP
        """
        return self._state_of_sessions().by_name(session)

    def _state_of_sessions(self) -> Sessions:
        self._process.check("the pipeline")
        if self._sessions is None:
            raise PartitionError(f"this pipeline has no sessions; {_NO_SESSIONS}")
        return self._sessions

    def _stream(
        self, requests: Iterable[Any], limit: int, return_exceptions: bool, whose: Mapping[str, int]
    ) -> Iterator[Any]:
        submitted: deque[Submitted] = deque()
        stream = iter(requests)
        try:
            while True:
                for request in islice(stream, limit - len(submitted)):
                    args, kwargs = _arguments(request)
                    submitted.append(self._start(args, {**kwargs, **whose}))
                if not submitted:
                    return
                # Waking this thread takes core time from a stage, so it wakes once for half of the requests in flight.
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
        if self._sessions is None:
            if "session" in kwargs and "session" not in self._signature.keywords:
                raise TypeError(f"session= names a sequence with its own state; {_NO_SESSIONS}")
            tensors, numbers = self._signature.read(args, kwargs)
            return self._runtime.submit(self._signature.numbers, tensors, until), numbers
        if "session" not in kwargs:
            raise TypeError("each request of this pipeline says with session= whose state it reads and writes")
        state = self._sessions.tensors(kwargs["session"])
        tensors, numbers = self._signature.read(args, {name: kwargs[name] for name in kwargs if name != "session"})
        values = (*self._signature.numbers, *self._sessions.numbers)
        return self._runtime.submit(values, [*tensors, *state], until), numbers

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
        """Take ``timeout`` out of ``kwargs``, unless it is the model's; return when it ends by ``time.monotonic``."""
        if "timeout" not in kwargs or "timeout" in self._signature.keywords:
            return math.inf
        timeout = kwargs.pop("timeout")
        if timeout is None:
            return math.inf
        if isinstance(timeout, bool) or not isinstance(timeout, Real) or not float(timeout) >= 0:
            raise PartitionError(f"timeout={timeout!r} must be a number of seconds, at least 0; None waits without end")
        return time.monotonic() + float(timeout)

    def close(self) -> None:
        """Finish what is in flight and stop the stages; a second call does nothing.

        Other threads may submit at the same time: requests that were started before are finished, all others are
        refused. In a forked child it does nothing.
        """
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shut_down(runtime: Runtime, collector: Collector, process: OwnProcess) -> None:
    if not process.is_this:  # the threads to wait for are in the parent
        return
    try:
        runtime.close()
    finally:  # every request is finished by now, or has failed
        collector.close()


def check_inflight(inflight: int | None) -> None:
    """Check ``inflight=``, the limit of requests in flight; None stands for the default.

    Raises:
        PartitionError: it is not a number from 1 to ``MOST_INFLIGHT``.
    """
    if inflight is None:
        return
    if isinstance(inflight, bool) or not isinstance(inflight, Integral):
        raise PartitionError(f"inflight={inflight!r} must be a whole number, at least 1; leave it out for the default")
    if inflight < 1:
        raise PartitionError(f"inflight={inflight} must be at least 1; leave it out for the default")
    if inflight > MOST_INFLIGHT:
        raise PartitionError(
            f"inflight={inflight} must be at most {MOST_INFLIGHT}; leave it out for the default (four for each stage "
            "thread), and submit waits where more requests come"
        )


def _arguments(request: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(request, Mapping):
        return (), request
    if isinstance(request, torch.Tensor):
        return (request,), {}
    return tuple(request), {}
