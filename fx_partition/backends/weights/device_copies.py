"""Weights on the devices of their stages: one copy of a storage on a device, however many stages and graphs use it.

A stage on the model's own device uses the model's own tensors, so training, ``load_state_dict`` and in-place updates
need nothing. A stage elsewhere uses a copy; the store notices when the original has changed since, by torch's version
counters and by its storage, and copies again before it is used next. Copies are waited for: they are made on the
current streams of one call, and read on those of others, which nothing else orders after them.

Dynamo calls the code of one module for others of its class, each with its own weights: a copy is that of the weight
which a call is made with.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..devices.cuda_driver import DRIVER, Driver


class _Copy:
    def __init__(self, original: Tensor, device: torch.device, driver: Driver) -> None:
        self.original = weakref.ref(original)
        self._device, self._driver = device, driver
        self._version: int = version_of(original)
        self._make(original)

    def refresh(self) -> None:
        """Copy again if the original was written, or given other memory, since it was copied."""
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
        # What is made under inference mode could not be written outside it when the weight changes.
        with torch.inference_mode(False), torch.no_grad():
            self.tensor = original.detach().to(self._device, copy=True)
        self._wait()
        self._memory, self._version = _memory_of(original), version_of(original)

    def _wait(self) -> None:
        if not self._driver.is_host(self._device):  # torch waits for copies to the host
            self._driver.current(self._device).record_event().synchronize()


def _memory_of(tensor: Tensor) -> weakref.ref[torch.UntypedStorage] | None:
    """Other than before once ``tensor.data`` was set, which no version tells; None for what has no storage."""
    return weakref.ref(tensor.untyped_storage()) if tensor.layout == torch.strided else None


def version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Store:
    """Copies of weights by (tensor, device); a copy goes when the last graph that uses it goes.

    Args:
        driver: what stands for ``torch.cuda``.
    """

    def __init__(self, driver: Driver = DRIVER) -> None:
        self._driver = driver
        self._copies: weakref.WeakValueDictionary[tuple[int, torch.device], _Copy] = weakref.WeakValueDictionary()

    def place(self, tensor: Tensor, device: torch.device) -> _Copy:
        """The copy of ``tensor`` on ``device``; made once, and alive as long as the caller keeps it."""
        key = (id(tensor), device)
        found = self._copies.get(key)
        if found is None or found.original() is not tensor:
            found = self._copies[key] = _Copy(tensor, device, self._driver)
        return found


class Here:
    """A weight on ``device``, for code that runs there: called with the weight of a call, it gives the copy.

    Args:
        weight: that of the first call, of which there is a copy from now on.
    """

    def __init__(self, weight: Tensor, device: torch.device, store: Store) -> None:
        self._device, self._store = device, store
        copy = store.place(weight, device)
        self._copies: Any = WeakIdKeyDictionary({weight: copy})  # a copy goes with its weight
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
