"""The state that compiling for a CPU depends on, besides the stage and options: versions, settings, the processor.

It is part of the name of compiled code that other processes may use. Like torch's own caches, this assumes that torch's
kernels, decompositions and lowerings have not been replaced.
"""

from __future__ import annotations

import functools
import platform
import sys
from typing import Any

import sympy
import torch

from fx_partition.hardware.processor import processor_lines

from ..lowering.torch_internals import compiler_settings, compiler_versions


def compiler_state() -> dict[str, Any]:
    """Return the state by name, in types that `portable_key.to_portable` accepts."""
    return {
        "versions": _versions(),
        "settings": compiler_settings(),
        "processor": (platform.machine(), processor_lines(), torch.backends.cpu.get_cpu_capability()),
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
        "attention": (  # these switches apply to CPUs too
            torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        ),
    }


@functools.lru_cache(maxsize=1)
def _versions() -> tuple[str | None, ...]:
    return sys.version, sympy.__version__, torch.__file__, *compiler_versions()
