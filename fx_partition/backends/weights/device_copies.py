"""Copies of weights on the devices of their stages: one for each weight and device, for all stages and graphs.

A stage on the model's own device uses the model's own tensors, so training, ``load_state_dict`` and in-place updates
need nothing. A stage on another device uses a copy. The store notices, by torch's version counters and by the storage,
that the original has changed, and copies it again before the next use. The host waits for each copy: it is made on the
current streams of one call and read on the streams of others, and nothing else orders these after it.

Dynamo calls the code of one module for other modules of its class, each with its own weights: a call uses the copies of
the weights that it is made with.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fx_partition.passes.capture.tensor_subclasses import plain_tensors

from ..devices.cuda_driver import DRIVER, Driver


class _Copy:
    def __init__(self, original: Tensor, device: torch.device, driver: Driver) -> None:
        self.original = weakref.ref(original)
        self._device, self._driver = device, driver
        self._version: int = version_of(original)
        self._make(original)

    def refresh(self) -> None:
        """Copy again if the original was written, or was given other memory, since the last copy."""
        original = self.original()
        if original is None:
            return
        if self._memory != _memory_of(original):
            self._make(original)
        elif self._version != version_of(original):
            version = version_of(original)
            with torch.inference_mode(False), torch.no_grad():
                self.tensor.copy_(original.detach())
            self._wait()
            self._version = version

    def _make(self, original: Tensor) -> None:
        # A copy made under inference mode could not be written outside of it when the weight changes.
        with torch.inference_mode(False), torch.no_grad():
            self.tensor = original.detach().to(self._device, copy=True)
        self._wait()
        self._memory, self._version = _memory_of(original), version_of(original)

    def _wait(self) -> None:
        if not self._driver.is_host(self._device):  # torch waits for copies to the host
            self._driver.current(self._device).record_event().synchronize()


def _memory_of(tensor: Tensor) -> list[weakref.ref[torch.UntypedStorage]]:
    """Return what changes when ``tensor.data`` is set, which no version counter shows; nothing without a storage."""
    return [weakref.ref(plain.untyped_storage()) for plain in plain_tensors(tensor) if plain.layout == torch.strided]


def version_of(tensor: Tensor) -> int:
    """Return torch's count of writes into a tensor, or the inner tensors of a subclass; inference tensors have none."""
    return sum(0 if plain.is_inference() else plain._version for plain in plain_tensors(tensor))


class WriteWatch:
    """Notices writes into tensors, by torch's version counters, in some 50 ns a tensor."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        plain = [part for tensor in tensors for part in plain_tensors(tensor)]
        self._counted = [part for part in plain if not part.is_inference()]
        self.see()

    @property
    def written(self) -> bool:
        """Whether a tensor was written since `see`."""
        return self._count() != self._seen

    def see(self) -> None:
        self._seen = self._count()

    def _count(self) -> int:
        return sum([part._version for part in self._counted])  # counters only rise


class Store:
    """Copies of weights by (tensor, device); a copy is freed with the last graph that uses it.

    Args:
        driver: the calls of ``torch.cuda``.
    """

    def __init__(self, driver: Driver = DRIVER) -> None:
        self._driver = driver
        self._copies: weakref.WeakValueDictionary[tuple[int, torch.device], _Copy] = weakref.WeakValueDictionary()

    def place(self, tensor: Tensor, device: torch.device) -> _Copy:
        """Return the copy of ``tensor`` on ``device``; it is made once, and lives as long as a caller keeps it."""
        key = (id(tensor), device)
        found = self._copies.get(key)
        if found is None or found.original() is not tensor:
            found = self._copies[key] = _Copy(tensor, device, self._driver)
        return found


class WeightOnDevice:
    """A function from the weight of a call to its copy on ``device``, for a stage that runs there.

    Args:
        weight: the weight of the first call; it is copied now.
    """

    def __init__(self, weight: Tensor, device: torch.device, store: Store) -> None:
        self._device, self._store = device, store
        copy = store.place(weight, device)
        self._copies: Any = WeakIdKeyDictionary({weight: copy})  # a copy is freed with its weight
        self._last = weakref.ref(copy)

    def __call__(self, weight: Tensor) -> Tensor:
        copy = self._last()
        if copy is None or copy.original() is not weight:
            if weight not in self._copies:
                self._copies[weight] = self._store.place(weight, self._device)
            copy = self._copies[weight]
            self._last = weakref.ref(copy)
        copy.refresh()
        return copy.tensor


STORE = Store()
