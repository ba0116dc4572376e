"""The calls of ``cuda.bindings.runtime`` that keep weights in L2, on the software GPU.

The real module has a runtime of its own linked into it, which asks for a real driver. Its types are used as they are.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

_NAME = "cuda.bindings.runtime"


class Runtime:
    """``cuda.bindings.runtime`` with these calls on the preloaded library; everything else is the module's own."""

    def __init__(self) -> None:
        self._module = importlib.import_module(_NAME)
        self._library = ctypes.CDLL(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def _error(self, code: int) -> Any:
        return self._module.cudaError_t(code)

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, int]:
        value = ctypes.c_int()
        code = self._library.cudaDeviceGetAttribute(ctypes.byref(value), int(attribute), device)
        return self._error(code), value.value

    def cudaDeviceGetLimit(self, limit: Any) -> tuple[Any, int]:
        value = ctypes.c_size_t()
        code = self._library.cudaDeviceGetLimit(ctypes.byref(value), int(limit))
        return self._error(code), value.value

    def cudaDeviceSetLimit(self, limit: Any, size: int) -> tuple[Any]:
        return (self._error(self._library.cudaDeviceSetLimit(int(limit), ctypes.c_size_t(size))),)

    def cudaCtxResetPersistingL2Cache(self) -> tuple[Any]:
        return (self._error(self._library.cudaCtxResetPersistingL2Cache()),)

    def cudaStreamSetAttribute(self, stream: int, attribute: Any, value: Any) -> tuple[Any]:
        address = ctypes.c_void_p(int(value.getPtr()))
        code = self._library.cudaStreamSetAttribute(ctypes.c_void_p(stream), int(attribute), address)
        return (self._error(code),)


def install() -> None:
    """Let ``import cuda.bindings.runtime`` find these calls."""
    sys.modules[_NAME] = Runtime()  # type: ignore[assignment]
