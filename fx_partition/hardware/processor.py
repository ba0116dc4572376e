"""Facts that decide which kernels run on this machine's processor: its instructions, and settings that limit them."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

# Lines of /proc/cpuinfo that decide which code a processor can run, on x86 and on ARM; others vary with the load.
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

# Variables that limit the libraries which torch calls to some kernels, or to a number of threads.
_VARIABLES = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "LRU_CACHE_", "MKL_", "OMP_", "ONEDNN_", "TORCH_MKLDNN_")


@functools.lru_cache(maxsize=1)
def processor_lines() -> tuple[str, ...]:
    """Return the lines of /proc/cpuinfo on the first core's instructions; none on systems other than Linux."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return ()
    return tuple(line for line in first.splitlines() if line.partition(":")[0].strip() in _CPU_LINES)


@functools.lru_cache(maxsize=1)
def cpu_capabilities() -> dict[str, object]:
    """Return torch's facts of the processor: whether it has each instruction set, and the sizes of its caches."""
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def kernel_choice() -> tuple[object, ...]:
    """Return all that decides, with the operands, which kernels torch runs on a CPU: equal values, equal kernels.

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
