"""Keep weights in a GPU's L2 by an access policy window over the pack of each stage.

The driver sets a part of L2 aside for *persisting* accesses (the *set-aside*, in bytes: at most 75% of an A100's L2,
62.5% of an H200's). A *window* is a range of addresses and belongs to a stream. The stream's kernels access the share
*hit ratio* of the window as persisting and the rest as streaming, which is evicted first. A ratio of 1 over more bytes
than the set-aside lets persisting lines evict each other; the ratio set-aside / window keeps that share in place.
Stages on one device share its set-aside in proportion to their windows, so they have one ratio::

    two packs of 20 MiB, 30 MiB set aside at most   ->   set-aside 30 MiB; two windows of 20 MiB, ratio 0.75

Kernels in a CUDA graph keep the window that their stream had during the capture, so windows are set before. Set-aside,
windows and persisting lines stay until they are reset: `Persistence.close` resets them.

Source: CUDA C++ Programming Guide, "L2 cache control". torch has no interface to it; ``cuda.bindings`` (package
``cuda-bindings``) does, and is optional.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionWarning
from fx_partition.common.own_process import OwnProcess

from ..devices.cuda_driver import Stream


@dataclass(frozen=True)
class AccessPolicyWindow:
    """A range of ``size`` bytes at ``address``; the share ``hit_ratio`` of its accesses persists. Size 0: no window."""

    address: int
    size: int
    hit_ratio: float


NO_WINDOW = AccessPolicyWindow(0, 0, 0.0)


def set_aside_for(sizes: Sequence[int], most: int, largest_window: int) -> int:
    """Return the bytes to set aside for packs of these sizes: the sum of their windows, at most ``most``."""
    return min(most, sum(min(size, largest_window) for size in sizes))


def windows_over(packs: Sequence[tuple[int, int]], set_aside: int, largest_window: int) -> list[AccessPolicyWindow]:
    """Return a window over each pack (address, bytes), no larger than the driver allows.

    The hit ratio of all windows is the set-aside divided by their total size, at most 1.

    Example::

        >>> for window in windows_over([(4096, 300), (8192, 100)], set_aside=100, largest_window=100):
        ...     print(window)
        AccessPolicyWindow(address=4096, size=100, hit_ratio=0.5)
        AccessPolicyWindow(address=8192, size=100, hit_ratio=0.5)
    """
    sizes = [min(size, largest_window) for _, size in packs]
    total = sum(sizes)
    ratio = min(1.0, set_aside / total) if total else 0.0
    return [
        AccessPolicyWindow(address, size, ratio) if size else NO_WINDOW
        for (address, _), size in zip(packs, sizes, strict=True)
    ]


class Calls(Protocol):
    """The driver calls for one device. Sizes are in bytes. Each raises RuntimeError if the driver refuses it."""

    def most_set_aside(self) -> int: ...

    def largest_window(self) -> int: ...

    def set_aside(self) -> int: ...

    def change_set_aside(self, size: int) -> None: ...

    def set_window(self, stream: Stream, window: AccessPolicyWindow) -> None: ...

    def reset_lines(self) -> None:
        """Turn persisting lines into normal ones, so that they can be evicted."""


class Bindings:
    """`Calls` by ``cuda.bindings.runtime``; tried with cuda-bindings 12.9 and 13.5 without a driver."""

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

    def set_window(self, stream: Stream, window: AccessPolicyWindow) -> None:
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
        """Call the runtime with the device made current, as limits and resets apply to the current device."""
        with torch.cuda.device(self._device):
            error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{name}: {error.name}")
        return results[0] if results else None


@functools.cache
def _runtime() -> Any:
    """Return ``cuda.bindings.runtime``; warn once and return None where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        warnings.warn(
            "no L2 persistence: cuda.bindings is not installed (pip install cuda-bindings)",
            PartitionWarning,
            stacklevel=2,
        )
        return None


def can_persist() -> bool:
    """Return whether ``cuda.bindings`` is installed; warn once where it is not."""
    return _runtime() is not None


def bindings(device: torch.device) -> Calls | None:
    """Return the driver calls for a CUDA device; warn and return None without ``cuda.bindings``."""
    runtime = _runtime()
    return None if runtime is None else Bindings(runtime, device)


_HELD: set[torch.device] = set()  # a device has one set-aside, so one `Persistence` at a time may change it


class Persistence:
    """The windows over the packs of one device's stages, set until `close`.

    Args:
        packs: the stream of each stage and its pack, a 1-D uint8 tensor, which must live until `close`.

    Raises:
        RuntimeError: another `Persistence` holds the device, or the driver refuses; all settings are as before.
    """

    def __init__(self, device: torch.device, packs: Sequence[tuple[Stream, Tensor]], calls: Calls) -> None:
        if device in _HELD:
            raise RuntimeError(f"another pipeline holds the L2 set-aside of {device}")
        largest = calls.largest_window()
        size = set_aside_for([pack.numel() for _, pack in packs], calls.most_set_aside(), largest)
        if size == 0:
            raise RuntimeError(f"{device} sets no L2 aside (as under MIG, or before compute capability 8.0)")
        streams = [stream for stream, _ in packs]
        # It also runs at exit, and when this object is collected without `close`.
        self._undo = weakref.finalize(self, _undo, device, streams, calls.set_aside(), calls, OwnProcess())
        _HELD.add(device)
        try:
            calls.change_set_aside(size)
            granted = min(size, calls.set_aside())  # the driver may round
            ranges = [(pack.data_ptr(), pack.numel()) for _, pack in packs]
            self.windows = windows_over(ranges, granted, largest)
            self._calls = calls
            for stream, window in zip(streams, self.windows, strict=True):
                calls.set_window(stream, window)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def window_on(self, stream: Stream, pack: Tensor) -> Iterator[None]:
        """Let the kernels that another stream captures meanwhile have the window over a pack of the device."""
        found = [window for window in self.windows if window.address == pack.data_ptr() and window.size]
        for window in found:
            self._calls.set_window(stream, window)
        try:
            yield
        finally:
            for _ in found:
                self._calls.set_window(stream, NO_WINDOW)

    def close(self) -> None:
        """Reset all settings, once; the work of the streams must be finished.

        Raises:
            RuntimeError: the driver refused a call; all others were made nonetheless.
        """
        self._undo()


def _undo(
    device: torch.device, streams: Sequence[Stream], set_aside: int, calls: Calls, process: OwnProcess
) -> None:
    if not process.is_this:  # a forked child has no driver
        return
    with contextlib.ExitStack() as stack:  # calls each, even if others raise; the last pushed is called first
        stack.callback(_HELD.discard, device)
        stack.callback(calls.change_set_aside, set_aside)
        stack.callback(calls.reset_lines)
        for stream in reversed(streams):
            stack.callback(calls.set_window, stream, NO_WINDOW)


def persist(device: torch.device, packs: Sequence[tuple[Stream, Tensor]], calls: Calls | None) -> Persistence | None:
    """Return a `Persistence` where the driver allows it; else warn with the reason and return None."""
    packs = [(stream, pack) for stream, pack in packs if pack.numel()]
    if calls is None or not packs:
        return None
    try:
        return Persistence(device, packs, calls)
    except RuntimeError as error:
        warnings.warn(f"no L2 persistence on {device}: {error}", PartitionWarning, stacklevel=2)
        return None
