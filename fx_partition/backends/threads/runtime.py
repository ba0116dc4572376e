"""Run a program on stage threads; ``ring.h`` says how requests move from thread to thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from fx_partition.hardware.cores import allowed_cores

from ..lowering.torch_internals import tensors_of, to_handles
from ..streaming.program import Program
from .aoti_compile import Code
from .build_extension import stage_loop

# The wait between two checks for Ctrl-C.
_SLICE_NS = 50_000_000
# A thread spins this long for its next request, then sleeps.
SPIN_NS = 50_000

Cores = tuple[int, ...]


class StageError(RuntimeError):
    """Compiled code of a stage failed on inputs on which eager mode does not."""


class ThreadRequest:
    """A pending request on stage threads (see `futures.PendingRequest`)."""

    def __init__(self, runtime: LocalRuntime, capsule: Any) -> None:
        self._runtime, self._capsule = runtime, capsule

    def wait(self, until: float = math.inf) -> bool:
        """Wait until the request is finished, or until a time of ``time.monotonic``; return whether it is finished."""
        while not self._runtime.loop.wait(self._capsule, self._runtime.host_spin_ns, _slice_ns(until)):
            if time.monotonic() >= until:
                return False
        return True

    def take(self) -> list[torch.Tensor]:
        """Return the results of a finished request.

        Raises:
            Exception: the exception that the failed stage raises on the same inputs in eager mode.
        """
        handles, failed, error = self._runtime.loop.take(self._runtime.pipe, self._capsule)
        tensors = tensors_of(handles)
        if failed >= 0:
            raise self._runtime.explain(failed, tensors, error)
        return tensors

    @property
    def times(self) -> list[tuple[int, int]]:
        """Return the start and end of each stage, in nanoseconds of the monotonic clock."""
        flat = self._runtime.loop.times(self._capsule)
        return list(zip(flat[::2], flat[1::2], strict=True))


class LocalRuntime:
    """Runs a program's stages on threads of their own.

    Args:
        program: the stages.
        codes: the compiled code of each stage.
        cores: for each stage, the cores of each of its copies.
        inflight: how many requests may be in flight.
    """

    def __init__(
        self, program: Program, codes: Sequence[Code], cores: Sequence[Sequence[Cores]], inflight: int
    ) -> None:
        self.loop: Any = stage_loop()
        self._program = program
        self._closed = False
        self._weights: list[torch.Tensor] = []
        stages = []
        for step, code, groups in zip(program.steps, codes, cores, strict=True):
            weights = [value.detach() for value in step.inputs if isinstance(value, torch.Tensor)]
            self._weights += weights
            order = iter(range(len(weights)))
            inputs = [-1 - next(order) if isinstance(v, torch.Tensor) else v for v in step.inputs]
            orders = [layout.order if layout and layout.order else () for layout in step.layouts]
            stages.append((code.path, inputs, to_handles(weights), step.outputs, orders, step.dead, len(groups)))
        results = [result for result in program.results if isinstance(result, int)]
        taken = [core for groups in cores for group in groups for core in group]
        # A thread must not spin on a core that another stage could work on.
        spin_ns = SPIN_NS if len(set(taken)) == len(taken) else 0
        try:
            self.pipe: Any = self.loop.create(stages, program.num_values, results, inflight, spin_ns)
        except BaseException:
            for _, _, handles, *_ in stages:
                tensors_of(handles)  # turn the handles back into tensors, which frees them: no pipe owns them
            raise
        self.host_spin_ns = SPIN_NS if set(allowed_cores()) - set(taken) else 0
        self._threads: list[threading.Thread] = []
        threads = [
            threading.Thread(
                target=self._serve,
                args=(step.index, replica, group, code.callback),
                name=f"fx_partition-stage-{step.index}.{replica}",
                daemon=True,
            )
            for step, code, groups in zip(program.steps, codes, cores, strict=True)
            for replica, group in enumerate(groups)
        ]
        try:
            for thread in threads:
                thread.start()
                self._threads.append(thread)
        except BaseException:  # the system has no more threads: stop those that did start
            self.close()
            raise

    def _serve(self, stage: int, replica: int, group: Cores, callback: Any) -> None:
        torch.get_num_threads()  # torch sizes a thread's pool on first use: let it, before `serve` sets the size
        self.loop.serve(self.pipe, stage, replica, group, callback)

    def submit(self, numbers: tuple[int, ...], tensors: list[torch.Tensor], until: float = math.inf) -> ThreadRequest:
        """Start a request; wait first while the limit of requests in flight is reached.

        Args:
            numbers, tensors: the numbers and tensors of the request's first values.
            until: when to give up, by ``time.monotonic``.

        Raises:
            RuntimeError: the runtime is closed, or was closed during the wait; nothing was started.
            TimeoutError: the time is over; nothing was started.
        """
        while True:
            if self.loop.wait_free(self.pipe, _slice_ns(until)):
                handles = to_handles(tensors)
                capsule = self.loop.submit(self.pipe, numbers, handles, tensors)
                if capsule is not None:
                    return ThreadRequest(self, capsule)
                tensors_of(handles)  # turn the handles back into tensors, which frees them: no request owns them
                if self._closed:
                    raise RuntimeError("the pipeline is closed")
            if time.monotonic() >= until:
                raise TimeoutError("the limit of requests in flight is reached, and none finished within timeout=")

    def explain(self, stage: int, tensors: Sequence[torch.Tensor], error: Exception | None) -> Exception:
        """Return the exception to raise for a failed stage.

        Compiled code loses the type of an exception, so the stage is run again in eager mode on the same inputs.

        Args:
            tensors: the values that the stage read.
            error: the exception that its compiled code raised, if it runs in Python.
        """
        step = self._program.steps[stage]
        values = iter(tensors)
        inputs = [value.detach() if isinstance(value, torch.Tensor) else next(values) for value in step.inputs]
        if step.has_tensors_only:
            for position in step.written:  # the next request may be at work on it
                inputs[position] = inputs[position].clone()
            try:
                with torch.no_grad():
                    step.module(*inputs)
            except Exception as found:
                return found
        return error or StageError(f"compiled code of stage {stage} failed; see its message on standard error")

    def close(self) -> None:
        """Refuse further requests, and stop the threads once nothing is in flight; a second call does nothing."""
        self._closed = True
        self.loop.stop(self.pipe)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _slice_ns(until: float) -> int:
    """Return the nanoseconds to wait before the next check for Ctrl-C, no more than are left until ``until``."""
    return _SLICE_NS if until == math.inf else int(min(_SLICE_NS, max(0.0, (until - time.monotonic()) * 1e9)))
