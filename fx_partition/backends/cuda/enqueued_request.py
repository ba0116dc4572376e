"""A request on GPUs all of whose work is enqueued."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..devices.cuda_driver import Driver, Event, Stream, wait_for


class EnqueuedRequest:
    """A pending request, all of whose work is enqueued (see `futures.PendingRequest`).

    The caller must not write its inputs before the request is finished.

    Args:
        results, events: the results, and the events after which they are written.
        error: what a stage raised.
        owners: for each result the stream whose memory it has; None: not the caller's.
        kept: tensors that live until the request is finished.
        streams: one of each device whose failure the events may not tell of.
    """

    def __init__(
        self,
        results: list[Any],
        events: list[Event],
        error: BaseException | None,
        driver: Driver,
        owners: Sequence[Stream | None] = (),
        kept: list[Any] | None = None,
        streams: Sequence[Stream] = (),
    ) -> None:
        self._results, self._events, self._error, self._driver = results, events, error, driver
        self._owners, self._kept = owners or [None] * len(results), kept
        self._streams = streams

    def wait(self, until: float = math.inf) -> bool:
        """Wait until the request is finished or has failed, or until a time of ``time.monotonic``; return whether."""
        return wait_for(self._events, until)

    def take(self) -> list[Any]:
        """Wait for the results and return them, each on the device that it returns to.

        Raises:
            Exception: the exception that a stage raised, or the error of a device that failed.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        self._driver.raise_failures(self._streams)
        for result, owner in zip(self._results, self._owners, strict=True):
            if isinstance(result, Tensor) and not self._driver.is_host(device := self._driver.device_of(result)):
                current = self._driver.current(device)
                if owner is None or owner.cuda_stream != current.cuda_stream:
                    self._driver.used_on(result, current)
        if self._kept is not None:
            self._kept.clear()
        return list(self._results)
