"""Let inductor compile for the software GPU: Triton lowers each kernel to a cubin for sm_90, and launches are counted.

The driver of Triton is replaced. Nothing runs a cubin, so a launch writes no values: it is a kernel of its stream that
does nothing, and a `Launch` in a list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from .machine import Machine


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel's launch.

    Attributes:
        name: of the kernel.
        device: the current device.
        stream: the handle of the stream that it is launched on.
        devices: of the tensors among its arguments.
    """

    name: str
    device: int
    stream: int
    devices: frozenset[int]


def install(machine: Machine) -> list[Launch]:
    """Replace Triton's driver, for the rest of the process; return the list that each launch is added to."""
    import triton
    import triton.backends
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import GPUDriver

    launches: list[Launch] = []

    class Launcher:
        def __init__(self, src: Any, metadata: Any, *_: Any, **__: Any) -> None:
            self._name = getattr(metadata, "name", None) or str(src.fn.__name__)

        def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any, **_: Any) -> None:
            devices = {value.device.index for value in rest if isinstance(value, torch.Tensor)}
            launches.append(Launch(self._name, torch.cuda.current_device(), stream, frozenset(devices)))
            if (error := machine.launch(stream, self._name)) != 0:
                raise RuntimeError(f"launch of {self._name}: CUDA error {error}")

    class Utils:
        def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads

        def unload_module(self, module: int) -> None:
            pass

        def get_device_properties(self, device: int) -> dict[str, int]:
            return {
                "max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32,
                "sm_clock_rate": 1980000, "mem_clock_rate": 3201000, "mem_bus_width": 6144,
            }  # fmt: skip

    class Driver(GPUDriver):  # type: ignore[misc]
        launcher_cls = Launcher

        def __init__(self) -> None:  # that of the base class asks torch for a driver's functions
            self.utils = Utils()
            self.get_device_capability = torch.cuda.get_device_capability
            self.get_current_device = torch.cuda.current_device
            self.set_current_device = torch.cuda.set_device
            self.get_current_stream = lambda device: torch.cuda.current_stream(device).cuda_stream

        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", torch.cuda.current_device())

        def get_device_interface(self) -> Any:
            return torch.cuda

        def map_python_to_cpp_type(self, kind: str) -> str:
            return "int"

        def get_benchmarker(self) -> Callable[..., float]:
            return lambda function, **_: 1.0

        def get_empty_cache_for_benchmark(self) -> torch.Tensor:
            return torch.empty(1, device="cuda")

        def clear_cache(self, cache: torch.Tensor) -> None:
            pass

    nvidia = triton.backends.backends["nvidia"]
    triton.backends.backends.clear()
    triton.backends.backends["nvidia"] = dataclasses.replace(nvidia, driver=Driver)
    # inductor would let Triton choose a driver again, and find none.
    triton_helpers.set_driver_to_gpu = lambda: None
    # Nothing takes time here: inductor would repeat each configuration until it has taken some.
    triton_heuristics.CachingAutotuner.bench = lambda *_, **__: 1.0  # type: ignore[method-assign]
    triton.runtime.driver.set_active(Driver())
    return launches
