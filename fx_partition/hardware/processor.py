"""What decides which kernels run on this machine's processor: its instructions, and what limits their use."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

# Lines of /proc/cpuinfo that say what code a processor runs, on x86 and on ARM; the others vary with the load.
_CPU_LINES = frozenset(
    {
        "CPU architecture",
        "CPU implementer",
        "CPU part",
        "CPU variant",
        "Features",
        "cpu family",
        "flags",
        "model",
        "model name",
        "stepping",
        "vendor_id",
    }
)

# Variables by which the libraries that torch calls are held to some kernels, or to a number of threads.
_VARIABLES = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "LRU_CACHE_", "MKL_", "OMP_", "ONEDNN_", "TORCH_MKLDNN_")


@functools.lru_cache(maxsize=1)
def processor_lines() -> tuple[str, ...]:
    """Return what Linux says of the first core's instructions; other systems have no such file, and give nothing."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return ()
    return tuple(line for line in first.splitlines() if line.partition(":")[0].strip() in _CPU_LINES)


@functools.lru_cache(maxsize=1)
def cpu_capabilities() -> dict[str, object]:
    """Return what torch knows of the processor: names of instruction sets with whether it has them, sizes of caches."""
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def kernel_choice() -> tuple[object, ...]:
    """Return all that kernels of torch on a CPU are chosen by, beside the operands: equal values choose equal kernels.

    Example::

        >>> kernel_choice() == kernel_choice()
        True
    """
    variables = sorted((name, value) for name, value in os.environ.items() if name.startswith(_VARIABLES))
    parts = (torch.backends, *(getattr(torch.backends.mkldnn, name) for name in ("matmul", "conv", "rnn")))
    return (
        torch.__version__,
        torch.version.git_version,
        platform.machine(),
        processor_lines(),
        sorted(cpu_capabilities().items()),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.backends.mkldnn.enabled,
        torch.backends.mkldnn.deterministic,
        tuple(part.fp32_precision for part in parts),
        variables,
    )
