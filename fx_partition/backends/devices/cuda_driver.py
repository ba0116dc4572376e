"""All calls that the CUDA runtime makes to ``torch.cuda``, in one class that a test can replace.

A *stream* runs its work in the order in which it was enqueued; an *event* that one stream records and another waits for
orders the two. torch's allocator keeps free memory by stream: it must know of every other stream that uses a tensor
(``used_on``), or it gives the memory away while that stream still reads it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fx_partition.common.errors import PartitionError

_POOLED = 32  # streams of one device and priority, the same in all releases of torch
#: The streams that stages have, by device and handle.
_OWNED: weakref.WeakValueDictionary[tuple[torch.device, int], Stream] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()

_FIRST_PAUSE, _LONGEST_PAUSE = 2e-5, 1e-3  # seconds between two queries of an event


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Stream(Protocol):
    """A queue of work on one device; ``cuda_stream`` is the driver's handle."""

    @property
    def cuda_stream(self) -> int: ...

    def record_event(self, event: Any = None) -> Any: ...

    def wait_event(self, event: Any) -> None: ...


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


@dataclass(frozen=True)
class GraphPool:
    """Memory of captured work, which nothing else uses while this object or a graph lives.

    Attributes:
        launching: torch's handle of the memory on the device that launches the graphs.
        others: torch's pools on the other devices.
    """

    launching: Any
    others: Mapping[torch.device, Any]


class Driver:
    """Streams, copies and captures on CUDA devices; the CPU is the *host*, which has no streams."""

    def device(self, device: torch.device) -> torch.device:
        """Return the device with its index: ``cuda`` is the current GPU."""
        if self.is_host(device) or device.index is not None:
            return device
        return torch.device("cuda", torch.cuda.current_device())

    def is_host(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def device_of(self, tensor: Tensor) -> torch.device:
        return tensor.device

    def stream(self, device: torch.device) -> Stream:
        """Return a stream for copies: one that no caller of `own_stream` has, unless these have all."""
        return self._from_pool(device) or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def own_stream(self, device: torch.device) -> Stream:
        """Return a stream that this method does not return again while the returned object lives.

        torch's streams come from a pool of 32 for each device: the 33rd is the first again. Two stages with one stream
        would wait for each other, and have one L2 window. Streams that the user makes are of this pool too.

        Raises:
            PartitionError: 32 are in use.
        """
        with _LOCK:
            found = self._from_pool(device)
            if found is None:
                raise PartitionError(
                    f"the {_POOLED} streams that torch has for {device} are all in use by stages, and each stage needs "
                    "one of its own: make fewer stages on this device, or close pipelines that are no longer needed"
                )
            _OWNED[device, found.cuda_stream] = found
        return found

    def _from_pool(self, device: torch.device) -> Stream | None:
        """Return a stream of torch's pool that nobody owns, or None."""
        for _ in range(_POOLED):
            stream: Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if (device, stream.cuda_stream) not in _OWNED:
                return stream
        return None

    def current(self, device: torch.device) -> Stream:
        """Return the stream that the caller uses on ``device``."""
        return torch.cuda.current_stream(device)

    @contextlib.contextmanager
    def on(self, *streams: Stream) -> Iterator[None]:
        """Enqueue on these streams, each for its device; the last one's device is current."""
        with contextlib.ExitStack() as stack:
            for stream in streams:
                assert isinstance(stream, torch.cuda.Stream)
                stack.enter_context(torch.cuda.stream(stream))
            yield

    def used_on(self, tensor: Tensor, stream: Stream) -> None:
        """Keep the memory of a freed tensor until ``stream`` has done the work that it has now."""
        assert isinstance(stream, torch.cuda.Stream)
        tensor.record_stream(stream)

    def copy(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return a copy on ``device``, enqueued on the current streams.

        Between two GPUs torch copies on the source's current stream, between two waits of the target's current one.
        To and from the host it goes through pinned memory, as the driver would wait for pageable memory; the
        allocator of pinned memory knows of copies, and keeps it until they are done.
        """
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
        elif device.type == "cpu":
            return torch.empty_like(tensor, device=device, pin_memory=True).copy_(tensor, non_blocking=True)
        return tensor.to(device, copy=True, non_blocking=True)

    def copy_into(self, target: Tensor, source: Tensor) -> None:
        """Copy to a tensor of the current device from that device or the host, on the current stream."""
        if source.device.type == "cpu" and not source.is_pinned():
            source = torch.empty_like(source, pin_memory=True).copy_(source)
        target.copy_(source, non_blocking=True)

    def empty(self, like: Tensor, device: torch.device) -> Tensor:
        """Return a tensor on ``device`` that is not written yet, of the memory of its current stream."""
        return torch.empty_like(like, device=device)

    def graph_pool(self, others: Iterable[torch.device] = ()) -> GraphPool:
        """Return memory for graphs that run one after another.

        Args:
            others: the devices besides the one that launches the graphs.
        """
        pools = {}
        for device in others:
            with torch.cuda.device(device):
                pools[device] = torch.cuda.MemPool()
        return GraphPool(torch.cuda.graph_pool_handle(), pools)

    def capture(
        self, function: Callable[[], Sequence[Any]], stream: Stream, pool: GraphPool, others: Sequence[Stream] = ()
    ) -> tuple[Graph, Sequence[Any]]:
        """Return the work that ``function`` enqueues as a graph, and its result; nothing runs yet.

        Other threads may go on using CUDA meanwhile (``thread_local``).

        Args:
            stream: the stream on which the work begins and ends; the graph is launched on its device.
            others: streams of other devices that the work uses: they fork from ``stream`` and join it again.
        """
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream the current one: the outer context puts the caller's back.
        with _own_workspaces(), self.on(*others, stream), contextlib.ExitStack() as stack:
            for other in others:  # torch routes the memory of the launching device alone
                assert isinstance(other, torch.cuda.Stream)
                stack.enter_context(torch.cuda.use_mem_pool(pool.others[other.device], other.device))
            assert isinstance(stream, torch.cuda.Stream)
            stack.enter_context(
                torch.cuda.graph(graph, pool.launching, stream, capture_error_mode="thread_local")
            )
            begun = stream.record_event()
            for other in others:
                other.wait_event(begun)
            results = function()
            for other in others:
                stream.wait_event(other.record_event())
        return graph, results

    def keep_random_state(self, devices: Sequence[torch.device]) -> contextlib.AbstractContextManager[None]:
        """Put the random numbers of the host and of ``devices`` back afterwards."""
        return torch.random.fork_rng([device.index for device in devices], device_type="cuda")

    def raise_failures(self, streams: Iterable[Stream]) -> None:
        """Raise the error of a device that has failed, by a stream of each: events of other devices do not tell.

        Raises:
            RuntimeError: one has failed.
        """
        for stream in streams:
            assert isinstance(stream, torch.cuda.Stream)
            stream.query()

    def synchronize(self, device: torch.device) -> None:
        """Wait for all work of ``device``."""
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let what is captured have workspaces of cuBLAS in its own memory, which nothing else uses.

    torch keeps one for each stream, from the first product on. A graph would go on using it together with whatever runs
    on that stream, or after torch freed it; torch's own graphs do the same.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


DRIVER = Driver()


def wait_for(events: Sequence[Event], until: float) -> bool:
    """Wait until all events have happened, or until a time of ``time.monotonic``; return whether they have.

    CUDA cannot wait for an event with a time limit, so with a limit the events are queried again and again.
    """
    if until == math.inf:
        for event in events:
            event.synchronize()
        return True
    pause = _FIRST_PAUSE
    while not have_happened(events):
        left = until - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


def have_happened(events: Sequence[Event]) -> bool:
    """Return whether all events have happened, without waiting for them."""
    return all(event.query() for event in events)
