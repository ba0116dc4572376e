"""Weights on the devices of their stages: one copy of a storage on a device, however many stages and graphs use it.

A stage on the model's own device uses the model's own tensors, so training, ``load_state_dict`` and in-place updates
need nothing. A stage elsewhere uses a copy; the store notices when the original has changed since, by torch's version
counters, and copies again before the next call. Copies are waited for: they are made on the current streams of one
call, and read on those of others, which nothing else orders after them.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from .cuda_driver import DRIVER, Driver


class _Copy:
    def __init__(self, original: Tensor, device: torch.device, driver: Driver) -> None:
        self.original = weakref.ref(original)
        self._device, self._driver = device, driver
        with torch.no_grad():
            self.tensor = original.detach().to(device, copy=True)
        self._wait()
        self.version = version_of(original)

    def refresh(self) -> None:
        original = self.original()
        if original is not None and (version := version_of(original)) != self.version:
            self.tensor.copy_(original.detach())
            self._wait()
            self.version = version

    def _wait(self) -> None:
        if not self._driver.is_host(self._device):  # torch waits for copies to the host
            self._driver.current(self._device).record_event().synchronize()


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


STORE = Store()
