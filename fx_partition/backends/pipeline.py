"""A model as a pipeline: its partitions on devices of their own, and a stream of requests through them."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch

from fx_partition.hardware.cores import core_groups, format_group, is_group, parse_group
from fx_partition.passes.capture import ExampleInputs, Model, capture
from fx_partition.passes.errors import PartitionError
from fx_partition.passes.gather import gather_facts
from fx_partition.passes.plan import Partition, Plan
from fx_partition.passes.planning import make_plan
from fx_partition.passes.request import CacheBytes, Request
from fx_partition.passes.split import cut, planned_graph

from .local.native import compile_steps
from .local.runtime import Cores, LocalRuntime, Ticket
from .program import make_program
from .signature import Signature

_Waiting = tuple[Ticket, dict[Any, int]]


def pipeline(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    cache_bytes: CacheBytes | None = None,
    *,
    devices: str | Sequence[str] = "cpu:threads",
    dynamic_shapes: Any = None,
    inflight: int | None = None,
    replicate: bool = True,
    inductor: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pipeline:
    """Cut a model into stages, compile each for its device, and start them.

    Args:
        model, example_inputs, cache_bytes, dynamic_shapes, options: as for `fx_partition.plan`; without ``cache_bytes``
            the model is spread over all devices, as evenly as it can be.
        devices: "cpu:threads": a thread on each group of cores that share a cache (see `hardware.cores.core_groups`);
            or groups by name, ``["cores:0-3", "cores:4-7"]``.
        inflight: how many requests may be in flight; ``submit`` waits beyond that. Default: four a stage thread.
        replicate: whether devices that are left over take copies of the largest partitions.
        inductor: options of inductor.

    Returns:
        A running `Pipeline`, for inference; use it as a context manager, or close it.

    Raises:
        PartitionError (a ValueError): what cannot be planned or cut, or devices that do not exist.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> with fx_partition.pipeline(model, torch.randn(4, 256), "1MiB") as pipe:  # doctest: +SKIP
        ...     future = pipe.submit(torch.randn(4, 256))
        ...     results = list(pipe.map(torch.randn(4, 256) for _ in range(100)))
    """
    groups = _groups(devices)
    if inflight is not None and inflight < 1:
        raise PartitionError(f"inflight={inflight} lets no request in; it is 1 or more")
    names = tuple(map(format_group, groups))
    request = Request.check(cache_bytes, names, replicate=replicate, **options)
    captured = capture(model, example_inputs, dynamic_shapes)
    facts = gather_facts(captured)
    plan = make_plan(captured, facts, request)
    captured = planned_graph(captured, plan)
    program = make_program(captured, cut(captured, plan), facts.written)
    signature = Signature(captured, program, example_inputs)
    cores = [
        _places(partition, groups, replicated=not step.writes)
        for partition, step in zip(plan.partitions, program.steps, strict=True)
    ]
    threads = [min(map(len, places)) for places in cores]
    codes = compile_steps(program.steps, threads, inductor or {}, facts.symbols.bind(request.bind))
    first = {code: index for index, code in reversed(list(enumerate(codes)))}
    plan = plan.with_code(tuple(first[code] for code in codes))
    limit = inflight or 4 * sum(map(len, cores))
    return Pipeline(plan, signature, LocalRuntime(program, codes, cores, limit), limit)


def _groups(devices: str | Sequence[str]) -> list[Cores]:
    if devices == "cpu:threads":
        return core_groups()
    names = [devices] if isinstance(devices, str) else list(devices)
    unknown = [name for name in names if not is_group(name)]
    if unknown or not names:
        raise PartitionError(
            f"devices names {', '.join(map(repr, unknown)) or 'none'}; a pipeline runs on \"cpu:threads\" or on groups "
            'of cores, ["cores:0-3", "cores:4-7"]'
        )
    try:
        return [parse_group(name) for name in names]
    except ValueError as error:
        raise PartitionError(str(error)) from error


def _places(partition: Partition, groups: Sequence[Cores], *, replicated: bool) -> list[Cores]:
    """The cores of a partition and of its copies; one that writes a state has none, as there is one state."""
    slots = (partition.slot, *(partition.replicas if replicated else ()))
    return [groups[slot % len(groups)] for slot in slots]


class Pipeline:
    """Stages that run, each on its own device; made by `pipeline`.

    Results are plain tensors without gradients, also under ``torch.inference_mode``. Requests may be submitted from
    several threads. What a model writes (a cache, a counter) is written in the order of the requests.

    Attributes:
        plan: how the model was cut.
    """

    def __init__(self, plan: Plan, signature: Signature, runtime: LocalRuntime, inflight: int) -> None:
        self.plan = plan
        self._signature = signature
        self._runtime = runtime
        self._inflight = inflight
        self._collector = _Collector(signature)
        self._close = weakref.finalize(self, _shut_down, runtime, self._collector)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one request and wait for it."""
        ticket, numbers = self._start(args, kwargs)
        ticket.wait()
        return self._signature.results(ticket.take(), numbers)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a request; waits while as many are in flight as may be.

        Args:
            args, kwargs: as the model takes them; the tensors must not change before the request is finished.

        Returns:
            A future of what the model returns, or of the exception that a stage raised.

        Raises:
            ValueError, TypeError: not what the pipeline was made for; nothing was started.
            RuntimeError: the pipeline is closed.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._collector.add(future, self._start(args, kwargs))
        return future

    def map(
        self, requests: Iterable[Any], *, inflight: int | None = None, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Results of a stream of requests, in their order.

        Args:
            requests: each a tensor, a sequence of positional or a mapping of keyword arguments; taken only as results
                are taken, but for those in flight.
            inflight: how many requests may be in flight; default: as many as the pipeline allows.
            return_exceptions: whether an exception is yielded in place of its result, and not raised.

        Raises:
            Exception: what a stage raised, when its request's turn has come; the rest is dropped.
        """
        limit = min(inflight or self._inflight, self._inflight)
        waiting: deque[_Waiting] = deque()
        stream = iter(requests)
        try:
            while True:
                for request in islice(stream, limit - len(waiting)):
                    args, kwargs = _arguments(request)
                    waiting.append(self._start(args, kwargs))
                if not waiting:
                    return
                # Waking this thread costs a stage some of its core: once for half of what is in flight will do.
                waiting[(len(waiting) - 1) // 2][0].wait()
                for _ in range((len(waiting) + 1) // 2):
                    yield self._finish(waiting.popleft(), return_exceptions)
        finally:
            for ticket, _ in waiting:
                ticket.wait()

    def _start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Waiting:
        if not self._close.alive:
            raise RuntimeError("the pipeline is closed")
        tensors, numbers = self._signature.read(args, kwargs)
        return self._runtime.submit(self._signature.numbers, tensors), numbers

    def _finish(self, waiting: _Waiting, return_exceptions: bool) -> Any:
        ticket, numbers = waiting
        ticket.wait()
        try:
            return self._signature.results(ticket.take(), numbers)
        except Exception as error:
            if return_exceptions:
                return error
            raise

    def close(self) -> None:
        """Finish what is in flight and stop the stages; a second call does nothing."""
        self._close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """Gives futures their results, on a thread that is started with the first of them."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._queue: SimpleQueue[tuple[Future[Any], _Waiting] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, future: Future[Any], waiting: _Waiting) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fx_partition-collector", daemon=True)
                self._thread.start()
        self._queue.put((future, waiting))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, (ticket, numbers) = item
            ticket.wait()
            try:
                result = self._signature.results(ticket.take(), numbers)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del item, future, ticket  # nothing of a request may outlive it here

    def close(self) -> None:
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()


def _shut_down(runtime: LocalRuntime, collector: _Collector) -> None:
    collector.close()
    runtime.close()


def _arguments(request: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(request, Mapping):
        return (), request
    if isinstance(request, torch.Tensor):
        return (request,), {}
    return tuple(request), {}
