"""What compiling a stage for a CPU reads beside the stage and its options: versions, settings, flags, the processor.

Code that other processes are to use is named after all of it. As torch's own caches do, this takes it that nobody has
replaced torch's kernels, decompositions or lowerings.
"""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path
from typing import Any

import sympy
import torch

from ..lowering.torch_internals import compiler_settings, compiler_versions

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


def compiler_state() -> dict[str, Any]:
    """All of it, by name, as `portable_key.to_portable` takes it."""
    return {
        "versions": _versions(),
        "settings": compiler_settings(),
        "processor": (platform.machine(), _processor(), torch.backends.cpu.get_cpu_capability()),
        "threads": torch.get_num_threads(),
        "dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        ),
        "precision": tuple(
            part.fp32_precision
            for part in (torch.backends, *(getattr(torch.backends.mkldnn, name) for name in ("matmul", "conv", "rnn")))
        ),
        "oneDNN": torch.backends.mkldnn.enabled,
        "attention": (  # they hold for CPUs too
            torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        ),
    }


@functools.lru_cache(maxsize=1)
def _versions() -> tuple[str | None, ...]:
    return sys.version, sympy.__version__, torch.__file__, *compiler_versions()


@functools.lru_cache(maxsize=1)
def _processor() -> tuple[str, ...]:
    """The lines of the first core."""
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    return tuple(line for line in first.splitlines() if line.partition(":")[0].strip() in _CPU_LINES)
