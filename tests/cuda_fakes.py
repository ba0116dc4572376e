"""A stand-in for `cuda_driver.Driver` on CPU tensors that knows what may run at the same time.

Devices: ``cpu:0``, ``cpu:1``, ... are the GPUs, ``cpu`` is the host. All work is done at once, so results are real;
what is checked is the order that streams and events promise. Every operation has a tick on its stream, and every
stream, event and the host a vector clock: for each stream, the last tick known to be over. Two accesses of one storage
of which one writes must be ordered by the clocks, and when a storage is freed, every access by another stream than its
allocator's must be over, or that stream recorded (``used_on``). Everything else is a line in ``violations``.
Nothing finishes before the host waits for it, which is the worst case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fx_partition.backends.cuda.l2_persistence import AccessPolicyWindow
from fx_partition.backends.devices.cuda_driver import Driver

HOST = torch.device("cpu")
Clock = dict[str, int]


def join(clock: Clock, other: Clock) -> None:
    for name, tick in other.items():
        clock[name] = max(clock.get(name, 0), tick)


class FakeEvent:
    def __init__(self, clock: Clock, driver: FakeDriver) -> None:
        self.clock, self._driver = dict(clock), driver

    def query(self) -> bool:
        return all(self._driver.host.get(name, 0) >= tick for name, tick in self.clock.items())

    def synchronize(self) -> None:
        join(self._driver.host, self.clock)


class FakeStream:
    def __init__(self, name: str, device: torch.device, driver: FakeDriver) -> None:
        self.name, self.device, self._driver = name, device, driver
        self.clock: Clock = {}
        self.cuda_stream = id(self)

    def record_event(self, event: Any = None) -> FakeEvent:
        self._driver.events += 1
        return FakeEvent(self.clock, self._driver)

    def wait_event(self, event: Any) -> None:
        self._driver.waits += 1
        if self._driver.waits != self._driver.forgotten_wait:
            join(self.clock, event.clock)


@dataclass
class Memory:
    """One storage: who has accessed it since it was last written."""

    ref: StorageWeakRef
    device: torch.device
    owner: str | None
    writes: Clock = field(default_factory=dict)
    reads: Clock = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)


@dataclass
class Run:
    """One call of a stage's function: its tick, and what was over before it."""

    name: str
    stream: str
    tick: int
    before: Clock

    def is_after(self, other: Run) -> bool:
        return self.before.get(other.stream, 0) >= other.tick


class FakeGraph:
    """The work of a capture. The order of what it reads and writes was checked then, as if it ran.

    A replay does all of it again, as one operation of the stream that launches it.
    """

    def __init__(
        self, function: Callable[[], Sequence[Any]], driver: FakeDriver, streams: Sequence[FakeStream]
    ) -> None:
        self._function, self._driver = function, driver
        first, *others = streams
        driver.captured = _Captured()
        try:
            for other in others:
                join(other.clock, first.clock)
            self.outputs = function()
            made = set(map(_storage, driver.captured.writes))
            self._reads = [tensor for tensor in driver.captured.reads if _storage(tensor) not in made]
            for other in others:
                join(first.clock, other.clock)
        finally:
            driver.captured = None
        join(driver.host, first.clock)  # nothing of it ran, so nothing has to be waited for

    def replay(self) -> None:
        self._driver.replays += 1
        self._driver.silent = True
        try:
            results = self._function()
        finally:
            self._driver.silent = False
        outputs = [output for output in self.outputs if isinstance(output, Tensor)]
        for output, new in zip(self.outputs, results, strict=True):
            if isinstance(output, Tensor):
                output.copy_(new)
        self._driver.access(self._driver.launching, self._reads, outputs)

    def reset(self) -> None:
        self._driver.resets += 1


@dataclass
class _Captured:
    reads: list[Tensor] = field(default_factory=list)
    writes: list[Tensor] = field(default_factory=list)


def _storage(tensor: Tensor) -> int:
    return StorageWeakRef(tensor.untyped_storage()).cdata


class FakeDriver(Driver):
    """``forgotten_wait=n``: the n-th wait for an event is left out; ``forgotten_use=n``: so is the n-th ``used_on``."""

    def __init__(self, forgotten_wait: int = 0, forgotten_use: int = 0) -> None:
        self.forgotten_wait, self.forgotten_use = forgotten_wait, forgotten_use
        self.waits = self.uses = self.replays = self.resets = 0
        self.copies = self.events = 0
        self.captured: _Captured | None = None  # while work is captured
        self.silent, self.capture_error = False, ""
        self.host: Clock = {}
        self.violations: list[str] = []
        self.runs: list[Run] = []
        self._memories: dict[int, Memory] = {}
        self._streams: list[FakeStream] = []
        self._defaults: dict[torch.device, FakeStream] = {}
        self._now: list[FakeStream] = []

    def is_host(self, device: torch.device) -> bool:
        return device == HOST

    def device_of(self, tensor: Tensor) -> torch.device:
        return self._memory(tensor).device

    def stream(self, device: torch.device) -> FakeStream:
        self._streams.append(FakeStream(f"{device}/{len(self._streams)}", device, self))
        return self._streams[-1]

    def own_stream(self, device: torch.device) -> FakeStream:
        return self.stream(device)

    def raise_failures(self, streams: Iterable[Any]) -> None:
        pass  # no device fails here

    def current(self, device: torch.device) -> FakeStream:
        for stream in reversed(self._now):
            if stream.device == device:
                return stream
        if device not in self._defaults:
            self._defaults[device] = self.stream(device)
        return self._defaults[device]

    @contextlib.contextmanager
    def on(self, *streams: Any) -> Iterator[None]:
        self._now.extend(streams)
        try:
            yield
        finally:
            del self._now[len(self._now) - len(streams) :]

    def used_on(self, tensor: Tensor, stream: Any) -> None:
        self.uses += 1
        if self.uses != self.forgotten_use:
            self._memory(tensor).recorded.add(stream.name)

    def copy(self, tensor: Tensor, device: torch.device) -> Tensor:
        result = tensor.to(HOST, copy=True)
        if self.silent:
            return result
        self.copies += self.captured is None
        source = self.device_of(tensor)
        if source == device or HOST in (source, device):
            self.access(self.current(source if device == HOST else device), [tensor], [result], device)
            return result
        here, there = self.current(source), self.current(device)
        join(here.clock, there.clock)
        self.access(here, [tensor], [result], device, owner=there)
        join(there.clock, here.clock)
        return result

    def copy_into(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)
        self.copies += 1
        self.access(self._now[-1], [source], [target])

    def empty(self, like: Tensor, device: torch.device) -> Tensor:
        result = torch.empty_like(like)
        self._memory(result, device, self.current(device))
        return result

    def graph_pool(self, others: Any = ()) -> Any:
        return None

    @property
    def launching(self) -> FakeStream:
        return self._now[-1]

    def keep_random_state(self, devices: Sequence[torch.device]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def capture(
        self, function: Callable[[], Sequence[Any]], stream: Any, pool: Any, others: Sequence[Any] = ()
    ) -> tuple[FakeGraph, Sequence[Any]]:
        if self.capture_error:
            raise RuntimeError(self.capture_error)
        with self.on(*others, stream):
            graph = FakeGraph(function, self, [stream, *others])
        return graph, graph.outputs

    def synchronize(self, device: torch.device) -> None:
        for stream in self._streams:
            if stream.device == device:
                join(self.host, stream.clock)

    def kernel(self, name: str, function: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        """A stage's function whose accesses are seen, on the current stream."""

        def run(*arguments: Any) -> Sequence[Any]:
            results = function(*arguments)
            if not self.silent:
                stream = self._now[-1]
                before = {**stream.clock}
                join(before, self.host)
                tensors = [x for x in arguments if isinstance(x, Tensor)]
                known = {id(x.untyped_storage()) for x in tensors}
                made = [x for x in results if isinstance(x, Tensor) and id(x.untyped_storage()) not in known]
                self.access(stream, tensors, made, stream.device)
                if self.captured is not None:
                    return results
                self.runs.append(Run(name, stream.name, stream.clock[stream.name], before))
            return results

        return run

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Say that the caller made this tensor on its current stream of ``device``."""
        self.access(self.current(device), [], [tensor], device)
        return tensor

    def read_by_caller(self, tensor: Tensor) -> None:
        device = self.device_of(tensor)
        if device == HOST:
            self._check(tensor, self.host, self._memory(tensor).writes, "the host reads it before it is written")
        else:
            self.access(self.current(device), [tensor], [])

    def access(
        self,
        stream: FakeStream,
        reads: Sequence[Tensor],
        writes: Sequence[Tensor],
        device: torch.device | None = None,
        owner: FakeStream | None = None,
    ) -> None:
        self.sweep()
        if self.captured is not None:
            self.captured.reads += reads
            self.captured.writes += writes
        join(stream.clock, self.host)  # it is enqueued after what the host has waited for
        tick = stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        for tensor in reads:
            memory = self._memory(tensor)
            self._check(tensor, stream.clock, memory.writes, f"{stream.name} reads it before it is written")
            memory.reads[stream.name] = tick
        for tensor in writes:
            memory = self._memory(tensor, device or stream.device, owner or stream)
            self._check(tensor, stream.clock, memory.writes, f"{stream.name} writes it while it is written")
            self._check(tensor, stream.clock, memory.reads, f"{stream.name} writes it while it is read")
            memory.writes, memory.reads = {stream.name: tick}, {}

    def sweep(self) -> None:
        """Look at the storages that were freed since the last operation."""
        for key, memory in list(self._memories.items()):
            if not memory.ref.expired():
                continue
            del self._memories[key]
            if memory.owner is None or memory.device == HOST:
                continue
            over = {**next(stream for stream in self._streams if stream.name == memory.owner).clock}
            join(over, self.host)
            for name, tick in [*memory.reads.items(), *memory.writes.items()]:
                if name != memory.owner and name not in memory.recorded and over.get(name, 0) < tick:
                    self.violations.append(f"a tensor of {memory.owner} is freed while {name} may use it")

    def _check(self, tensor: Tensor, clock: Clock, accesses: Clock, what: str) -> None:
        for name, tick in accesses.items():
            if clock.get(name, 0) < tick:
                self.violations.append(f"a tensor {tuple(tensor.shape)}: {what} by {name}")

    def _memory(self, tensor: Tensor, device: torch.device = HOST, owner: FakeStream | None = None) -> Memory:
        ref = StorageWeakRef(tensor.untyped_storage())
        if ref.cdata not in self._memories:
            self._memories[ref.cdata] = Memory(ref, device, None if owner is None else owner.name)
        return self._memories[ref.cdata]


class FakeCalls:
    """`l2_persistence.Calls` of a device with 40 bytes of L2 to set aside, in windows of 100 bytes at most."""

    def __init__(self, most: int = 40, largest: int = 100, refuses: str = "") -> None:
        self.most, self.largest, self.refuses = most, largest, refuses
        self.size = 7
        self.log: list[Any] = []
        self.windows: dict[int, AccessPolicyWindow] = {}

    def most_set_aside(self) -> int:
        return self.most

    def largest_window(self) -> int:
        return self.largest

    def set_aside(self) -> int:
        return self.size

    def change_set_aside(self, size: int) -> None:
        self._note("change_set_aside", size)
        self.size = size

    def set_window(self, stream: Any, window: AccessPolicyWindow) -> None:
        self._note("set_window", window.size)
        self.windows[stream.cuda_stream] = window

    def reset_lines(self) -> None:
        self._note("reset_lines")

    def _note(self, name: str, *arguments: Any) -> None:
        self.log.append((name, *arguments))
        if name == self.refuses:
            raise RuntimeError(f"{name} refused")
