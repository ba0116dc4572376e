"""The weights of one stage on its device, which follow what the caller writes.

A stage reads a weight where it is, if it is on the stage's device and needs no L2 window; else it reads a copy in a
pack (`weight_buffer`). A copy is made straight from where the weight's values are: on the CPU, on another GPU, or in a
checkpoint, without going through the model's own device. A weight that moves (`moved_weights`) is that copy afterwards.
"""

from __future__ import annotations

from torch import Tensor

from ..devices.cuda_driver import Driver, Stream
from ..weights.device_copies import WriteWatch
from ..weights.lazy_weights import give_memory, materialize
from .stage_step import CudaStep
from .weight_buffer import Pack


def packed_positions(step: CudaStep, persist: bool, driver: Driver) -> list[int]:
    """Return the positions of the inputs that the stage reads from a pack."""
    device = driver.device(step.device)
    return [i for i, weight in step.weights.items() if persist or driver.device_of(weight) != device]


class StageWeights:
    """The weights of a stage.

    Args:
        step: the stage.
        stream: the stage's stream.
        persist: whether all weights are packed, for an L2 window.
        moving: the weights that become the stage's copies, by ``id``.

    Attributes:
        pack: the packed weights.
        placed: for each weight, by the position of the input, the tensor that the stage reads.
    """

    def __init__(
        self, step: CudaStep, stream: Stream, persist: bool, moving: frozenset[int], driver: Driver
    ) -> None:
        self._device, self._stream, self._driver = driver.device(step.device), stream, driver
        materialize(x for i, x in enumerate(step.inputs) if i in step.inputs_on_host and isinstance(x, Tensor))
        packed = packed_positions(step, persist, driver)
        weights = step.weights
        read_there = [weight for i, weight in weights.items() if i not in packed]
        materialize(read_there)
        devices = [driver.device_of(weights[i]) for i in packed]
        self._sources = {device for device in devices if not driver.is_host(device)}
        self.pack = Pack([weights[i] for i in packed], self._device)
        self.placed = {
            # An alias: the pipeline keeps this memory if the model is moved elsewhere afterwards.
            **{i: weight.detach() for i, weight in weights.items() if i not in packed},
            **dict(zip(packed, self.pack.tensors, strict=True)),
        }
        moved = [n for n, i in enumerate(packed) if id(weights[i]) in moving]
        if moved:
            for device in {self._device, *self._sources}:  # the former memory is free when this returns
                driver.synchronize(device)
            for n in moved:
                give_memory(weights[packed[n]], self.pack.tensors[n])
            self.pack.forget(moved)
        self._read_there = WriteWatch([*read_there, *(weights[packed[n]] for n in moved)])
        for tensor in self.placed.values():
            driver.used_on(tensor, stream)

    @property
    def written(self) -> bool:
        """Whether the caller wrote into a weight since `follow`."""
        return self.pack.stale or self._read_there.written

    def follow(self) -> None:
        """Let the stage's next work see what the caller wrote into the weights."""
        if self.pack.stale:
            callers = [self._driver.current(device) for device in self._sources]
            for caller in callers:  # these streams wrote the weights, and must not write them again before the copy
                self._stream.wait_event(caller.record_event())
            with self._driver.on(self._stream):
                self.pack.refresh()
            for caller in callers:
                caller.wait_event(self._stream.record_event())
        if self._read_there.written:
            self._read_there.see()
            self._stream.wait_event(self._driver.current(self._device).record_event())
