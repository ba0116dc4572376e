"""Copies between two devices that overlap with the computations of both.

A link has streams of its own: one at each end that is a GPU. A copy waits for the event of the stream that produces the
value, and the consumer waits for the event of the copy::

    producer:  [ stage 0, request 1 ][ stage 0, request 2 ]
    link:                             [ copy 1 ]           [ copy 2 ]
    consumer:                                   [ stage 1, request 1 ]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices.cuda_driver import Driver, Event, Stream


@dataclass(frozen=True)
class DeviceValue:
    """A value on one device.

    Attributes:
        tensor: its elements, which may not have been written yet.
        stream: the stream that writes it; None on the host.
        ready: the event after which it is written; None if it is written already.
    """

    tensor: Tensor
    stream: Stream | None
    ready: Event | None


class CopyLink:
    """A connection from ``source`` to ``target``, two different devices; at least one is a GPU."""

    def __init__(self, source: torch.device, target: torch.device, driver: Driver) -> None:
        assert source != target
        self._target, self._driver = target, driver
        self._ends = [driver.stream(device) for device in (source, target) if not driver.is_host(device)]
        self._from_host = driver.is_host(source)

    def send(self, value: DeviceValue) -> DeviceValue:
        """Enqueue the copy of a value on the source; the target's value is ready after the last stream's event."""
        first, last = self._ends[0], self._ends[-1]
        if value.ready is not None:
            first.wait_event(value.ready)
        with self._driver.on(*reversed(self._ends)):
            copy = self._driver.copy(value.tensor, self._target)
        if not self._from_host:
            self._driver.used_on(value.tensor, first)
        return DeviceValue(copy, None if self._driver.is_host(self._target) else last, last.record_event())
