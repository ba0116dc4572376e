"""The preloaded library as an object: what it counts, and how a test makes its devices fail."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator

#: Which calls were made, by the names in ``library/counters.h``.
Counts = dict[str, int]


class Machine:
    """The software GPU of this process.

    Raises:
        OSError: it is not preloaded.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        try:
            self._library.software_gpu_counter.restype = ctypes.c_longlong
        except AttributeError:
            raise OSError("the software GPU is not preloaded; run `make test-software-gpu`") from None
        self._library.software_gpu_counter_name.restype = ctypes.c_char_p
        self._names: list[str] = []
        while name := self._library.software_gpu_counter_name(len(self._names)):
            self._names.append(name.decode())
        self._kept: list[object] = []  # functions that the machine may still call

    def counts(self, device: int) -> Counts:
        """Return all counts of a device since the process began."""
        return {name: self._library.software_gpu_counter(i, device) for i, name in enumerate(self._names)}

    @contextlib.contextmanager
    def counting(self, device: int) -> Iterator[Counts]:
        """Count the calls within the block: the dictionary is complete when the block ends, without zeros."""
        before, found = self.counts(device), Counts()
        yield found
        found.update({name: n - before[name] for name, n in self.counts(device).items() if n != before[name]})

    def reset_peak(self, device: int) -> None:
        """Let ``peak_allocated_bytes`` begin at what is allocated now."""
        self._library.software_gpu_reset_peak(device)

    def set_memory(self, device: int, size: int) -> None:
        """Give a device so many bytes; what is allocated stays."""
        self._library.software_gpu_set_memory(device, ctypes.c_size_t(size))

    def fail_kernel(self, device: int, from_now: int) -> None:
        """Let a kernel fail when it runs, and the device with it; 1 is the next that is enqueued."""
        self._library.software_gpu_fail_kernel(device, ctypes.c_longlong(from_now))

    def refuse_kernel(self, device: int, from_now: int) -> None:
        """Let the launch of a kernel be refused; 1 is the next. The device works on."""
        self._library.software_gpu_refuse_kernel(device, ctypes.c_longlong(from_now))

    def forget_error(self) -> None:
        """Forget the last error of this thread, which torch would raise in its next call."""
        self._library.cudaGetLastError()

    def repair(self, device: int) -> None:
        """Let a failed device work again, and call off a failure that has not come yet."""
        self._library.software_gpu_repair(device)

    def seed(self, seed: int) -> None:
        """Begin a schedule: after this the same calls do the same work in the same order."""
        self._library.software_gpu_seed(seed)

    @contextlib.contextmanager
    def held(self, device: int) -> Iterator[None]:
        """Let the streams of a device stand still within the block."""
        self._library.software_gpu_hold(device, 1)
        try:
            yield
        finally:
            self._library.software_gpu_hold(device, 0)

    def launch(self, stream: int, name: str, function: Callable[[], None] | None = None) -> int:
        """Launch a kernel on a stream, by its handle: ``function`` is called when it runs. Returns CUDA's error."""
        call = None
        if function is not None:
            call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: function())
            self._kept.append(call)
        error = int(self._library.software_gpu_launch(ctypes.c_void_p(stream), name.encode(), call, None))
        if error != 0:
            self.forget_error()
        return error


def is_preloaded() -> bool:
    """Return whether this process has the software GPU."""
    return hasattr(ctypes.CDLL(None), "software_gpu_counter")
