"""Operators of torch that ``library/kernels.cpp`` has no kernel for, run by torch's CPU code when it is their turn.

An operator's launch allocates its results on the device, as its own code does, and enqueues one kernel on the current
stream. When that runs, tensors of the CPU lie over the same memory, and the operator for the CPU writes the results. So
the order of the work, and what it reads when something is missing, are those of a kernel.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .machine import Machine

#: Of the dispatcher's names; forms with ``out=`` and other overloads stay torch's own.
OPERATORS = [
    "_log_softmax", "_softmax", "abs", "argmax", "cat", "embedding", "eq.Scalar", "eq.Tensor", "exp", "gelu",
    "gelu_backward", "gt.Scalar", "index.Tensor", "mean.dim", "mse_loss", "mse_loss_backward",
    "native_layer_norm", "native_layer_norm_backward", "ne.Scalar", "neg", "normal_", "pow.Tensor_Scalar", "rsqrt",
    "sigmoid", "silu", "sum", "sum.dim_IntList", "tanh", "tanh_backward", "threshold_backward", "uniform_",
]  # fmt: skip


class _Memory:
    """Where a tensor of a device lies: it does not keep the memory, as a kernel's pointer does not."""

    def __init__(self, tensor: Tensor) -> None:
        self._address, self._size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self._dtype, self._shape, self._stride = tensor.dtype, tensor.shape, tensor.stride()
        self._offset = tensor.storage_offset()

    def tensor(self) -> Tensor:
        """Return a tensor of the CPU over the memory."""
        if self._size == 0:
            return torch.empty(self._shape, dtype=self._dtype)
        memory = (ctypes.c_char * self._size).from_address(self._address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of memory that Python could not write
            flat = torch.frombuffer(memory, dtype=self._dtype, count=self._size // self._dtype.itemsize)
        return flat.as_strided(self._shape, self._stride, self._offset)


class _Launcher:
    def __init__(self, operator: torch._ops.OpOverload, machine: Machine) -> None:
        self._operator, self._machine = operator, machine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = next(tensor.device for tensor in tensors if tensor.is_cuda)
        for tensor in tensors:
            if tensor.device != device and tensor.dim() > 0:
                raise RuntimeError(f"{self._operator} got tensors on {device} and {tensor.device}")
        results = self._results(device, args, kwargs)
        memory = pytree.tree_map_only(Tensor, lambda t: _Memory(t) if t.is_cuda else t.clone(), (args, kwargs))
        targets = [_Memory(result) for result in results]
        stream = torch.cuda.current_stream(device).cuda_stream
        with torch.cuda.device(device):
            error = self._machine.launch(stream, str(self._operator), lambda: self._run(memory, targets))
        if error != 0:
            raise RuntimeError(f"{self._operator}: CUDA error {error}")
        return results[0] if len(results) == 1 else tuple(results)

    def _results(self, device: torch.device, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the results, to be written: the first argument of an operator that writes it, or new tensors."""
        if self._operator._schema.is_mutable:
            return [args[0]]
        fakes = pytree.tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        results = self._operator(*fakes[0], **fakes[1])
        return [
            torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=device)
            for fake in pytree.tree_leaves(results)
        ]

    def _run(self, memory: Any, targets: Sequence[_Memory]) -> None:
        args, kwargs = pytree.tree_map_only(_Memory, _Memory.tensor, memory)
        with torch.inference_mode(False), torch.no_grad():
            results = pytree.tree_leaves(self._operator(*args, **kwargs))
            for result, target in zip(results, targets, strict=True):
                if not self._operator._schema.is_mutable:
                    target.tensor().copy_(result)


def install(machine: Machine) -> torch.library.Library:
    """Let these operators run on the machine's devices as long as the library that is returned lives."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is overridden
        for name in OPERATORS:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(operator, _Launcher(operator, machine), "CUDA")
    return library
