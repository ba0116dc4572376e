"""Requests in flight through a pipeline, and the futures that receive their results."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias

import torch

from fx_partition.common.own_process import OwnProcess

from .request_signature import RequestSignature


class PendingRequest(Protocol):
    """A request that a runtime has started.

    It runs to its end even if this object is dropped; its results are freed then.
    """

    def wait(self, until: float = math.inf) -> bool:
        """Wait until the request is finished, or until a time of ``time.monotonic``; return whether it is finished."""

    def take(self) -> list[torch.Tensor]:
        """Return the results of a finished request.

        Raises:
            Exception: the exception that a stage raised.
        """


#: A pending request, and the value of each of its symbolic sizes.
Submitted: TypeAlias = "tuple[PendingRequest, dict[Any, int]]"


class RequestFuture(Future[Any]):
    """A future on which only the process that submitted the request may wait."""

    def __init__(self, process: OwnProcess) -> None:
        super().__init__()
        self._process = process

    def result(self, timeout: float | None = None) -> Any:
        self._process.check("the request of this future")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._process.check("the request of this future")
        return super().exception(timeout)


class Collector:
    """Sets the results of futures, on a thread that the first future starts."""

    def __init__(self, signature: RequestSignature) -> None:
        self._signature = signature
        self._queue: SimpleQueue[tuple[Future[Any], Submitted] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    def add(self, future: Future[Any], submitted: Submitted) -> None:
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fx_partition-collector", daemon=True)
                    self._thread.start()
                self._queue.put((future, submitted))
                return
        self._settle(future, submitted)  # the pipeline was closed after the request started: no thread would do it

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._settle(*item)
            del item  # else the last request's tensors would live until the next request comes

    def _settle(self, future: Future[Any], submitted: Submitted) -> None:
        request, numbers = submitted
        try:
            request.wait()
            result = self._signature.results(request.take(), numbers)
        except BaseException as error:  # an exception belongs to its own future; the thread goes on with the others
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del future, submitted, request  # the future holds the error, whose traceback holds this frame: a cycle

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._queue.put(None)
        # A callback of a future runs on this thread, and it may close the pipeline.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
