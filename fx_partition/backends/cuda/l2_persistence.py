"""Weights that stay in a GPU's L2: an access policy window over the pack of each stage.

The driver sets a part of L2 aside for *persisting* accesses (the set-aside, bytes: at most 75% of an A100's, 62.5% of
an H200's). A *window* is a range of addresses and belongs to a stream; of the accesses to it, by the stream's kernels,
the *hit ratio* are persisting, and the rest streaming, first to be evicted. A ratio of 1 over more bytes than the
set-aside lets them evict each other; set-aside / window keeps that share in place. Stages on one device share its
set-aside in proportion to their windows, so that one ratio serves all::

    two packs of 20 MiB, 30 MiB set aside at most   ->   set-aside 30 MiB; two windows of 20 MiB, ratio 0.75

Kernels that are captured in a graph keep the window that their stream had then, so windows are set before. Set-aside,
windows and persisting lines outlive what asked for them: `Persistence.close` takes them back.

Source: CUDA C++ Programming Guide, "L2 cache control". torch has no interface to it; ``cuda.bindings`` (package
``cuda-bindings``) does, and is optional.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionWarning
from fx_partition.common.own_process import OwnProcess

from ..devices.cuda_driver import Stream


@dataclass(frozen=True)
class Window:
    """``size`` bytes from ``address``, of whose accesses the share ``hit_ratio`` persists; size 0 is no window."""

    address: int
    size: int
    hit_ratio: float


NO_WINDOW = Window(0, 0, 0.0)


def set_aside_for(sizes: Sequence[int], most: int, largest_window: int) -> int:
    """How many bytes to set aside for packs of these sizes: what their windows hold, clamped to ``most``."""
    return min(most, sum(min(size, largest_window) for size in sizes))


def windows_over(packs: Sequence[tuple[int, int]], set_aside: int, largest_window: int) -> list[Window]:
    """A window over each pack (address, bytes), no larger than the driver allows; see above for the ratio.

    Example::

        >>> windows_over([(4096, 300), (8192, 100)], set_aside=100, largest_window=100)
        [Window(address=4096, size=100, hit_ratio=0.5), Window(address=8192, size=100, hit_ratio=0.5)]
    """
    sizes = [min(size, largest_window) for _, size in packs]
    total = sum(sizes)
    ratio = min(1.0, set_aside / total) if total else 0.0
    return [
        Window(address, size, ratio) if size else NO_WINDOW for (address, _), size in zip(packs, sizes, strict=True)
    ]


class Calls(Protocol):
    """The driver's calls, for one device. Sizes are bytes; each raises RuntimeError if the driver refuses."""

    def most_set_aside(self) -> int: ...

    def largest_window(self) -> int: ...

    def set_aside(self) -> int: ...

    def change_set_aside(self, size: int) -> None: ...

    def set_window(self, stream: Stream, window: Window) -> None: ...

    def reset_lines(self) -> None:
        """Persisting lines become normal ones, so that they can be evicted."""


class Bindings:
    """`Calls` through ``cuda.bindings.runtime``; tried with cuda-bindings 12.9 and 13.5 without a driver."""

    def __init__(self, runtime: Any, device: torch.device) -> None:
        self._runtime, self._device = runtime, device

    def most_set_aside(self) -> int:
        return self._attribute(self._runtime.cudaDeviceAttr.cudaDevAttrMaxPersistingL2CacheSize)

    def largest_window(self) -> int:
        return self._attribute(self._runtime.cudaDeviceAttr.cudaDevAttrMaxAccessPolicyWindowSize)

    def set_aside(self) -> int:
        return int(self._call("cudaDeviceGetLimit", self._runtime.cudaLimit.cudaLimitPersistingL2CacheSize))

    def change_set_aside(self, size: int) -> None:
        self._call("cudaDeviceSetLimit", self._runtime.cudaLimit.cudaLimitPersistingL2CacheSize, size)

    def set_window(self, stream: Stream, window: Window) -> None:
        kinds = self._runtime.cudaAccessProperty
        policy = self._runtime.cudaAccessPolicyWindow()
        policy.base_ptr = window.address
        policy.num_bytes = window.size
        policy.hitRatio = window.hit_ratio
        policy.hitProp = kinds.cudaAccessPropertyPersisting if window.size else kinds.cudaAccessPropertyNormal
        policy.missProp = kinds.cudaAccessPropertyStreaming if window.size else kinds.cudaAccessPropertyNormal
        value = self._runtime.cudaStreamAttrValue()
        value.accessPolicyWindow = policy
        attribute = self._runtime.cudaStreamAttrID.cudaLaunchAttributeAccessPolicyWindow
        self._call("cudaStreamSetAttribute", stream.cuda_stream, attribute, value)

    def reset_lines(self) -> None:
        self._call("cudaCtxResetPersistingL2Cache")

    def _attribute(self, attribute: Any) -> int:
        return int(self._call("cudaDeviceGetAttribute", attribute, self._device.index))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Limits and resets are of the current device."""
        with torch.cuda.device(self._device):
            error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{name}: {error.name}")
        return results[0] if results else None


@functools.cache
def _runtime() -> Any:
    """``cuda.bindings.runtime``; None, said once, where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        warnings.warn(
            "no L2 persistence: cuda.bindings is not installed (pip install cuda-bindings)",
            PartitionWarning,
            stacklevel=2,
        )
        return None


def bindings(device: torch.device) -> Calls | None:
    """The driver's calls for a CUDA device, or None (with a warning) without ``cuda.bindings``."""
    runtime = _runtime()
    return None if runtime is None else Bindings(runtime, device)


_HELD: set[torch.device] = set()  # the set-aside is one for each device, and restored to what it was before


class Persistence:
    """Windows over the packs of the stages of one device, from the construction to `close`.

    Args:
        packs: the stream of each stage and its pack, 1-D uint8, which must live until `close`.

    Raises:
        RuntimeError: another one holds the device, or the driver refuses; everything is then as before.
    """

    def __init__(self, device: torch.device, packs: Sequence[tuple[Stream, Tensor]], calls: Calls) -> None:
        if device in _HELD:
            raise RuntimeError(f"another pipeline holds the L2 set-aside of {device}")
        largest = calls.largest_window()
        size = set_aside_for([pack.numel() for _, pack in packs], calls.most_set_aside(), largest)
        if size == 0:
            raise RuntimeError(f"{device} sets no L2 aside (as under MIG, or before compute capability 8.0)")
        streams = [stream for stream, _ in packs]
        # Also runs when this is collected unclosed, and at exit.
        self._undo = weakref.finalize(self, _undo, device, streams, calls.set_aside(), calls, OwnProcess())
        _HELD.add(device)
        try:
            calls.change_set_aside(size)
            granted = min(size, calls.set_aside())  # the driver may round
            places = [(pack.data_ptr(), pack.numel()) for _, pack in packs]
            self.windows = windows_over(places, granted, largest)
            for stream, window in zip(streams, self.windows, strict=True):
                calls.set_window(stream, window)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything back, once; the streams' work must be done.

        Raises:
            RuntimeError: the driver refuses a part of it; the other parts are done all the same.
        """
        self._undo()


def _undo(
    device: torch.device, streams: Sequence[Stream], set_aside: int, calls: Calls, process: OwnProcess
) -> None:
    if not process.is_this:  # a forked child has no driver
        return
    with contextlib.ExitStack() as stack:  # each is called, whatever the others raise; the last pushed is the first
        stack.callback(_HELD.discard, device)
        stack.callback(calls.change_set_aside, set_aside)
        stack.callback(calls.reset_lines)
        for stream in reversed(streams):
            stack.callback(calls.set_window, stream, NO_WINDOW)


def persist(device: torch.device, packs: Sequence[tuple[Stream, Tensor]], calls: Calls | None) -> Persistence | None:
    """`Persistence` where it can be had, else None; what the driver says against it is a PartitionWarning."""
    packs = [(stream, pack) for stream, pack in packs if pack.numel()]
    if calls is None or not packs:
        return None
    try:
        return Persistence(device, packs, calls)
    except RuntimeError as error:
        warnings.warn(f"no L2 persistence on {device}: {error}", PartitionWarning, stacklevel=2)
        return None
