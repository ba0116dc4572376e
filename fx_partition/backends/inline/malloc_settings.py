"""Keep freed memory in the process, so that large activations are not returned to the kernel at every call.

glibc's malloc takes a block of 128 KiB or more (its threshold grows to 32 MiB as such blocks are freed) from the kernel
by ``mmap`` and returns it when it is freed; it also returns the top of its heap when enough of it is free. Then every
call of a model pays for new zeroed pages, one fault each, and none of them is in a cache. With both thresholds raised,
the next call uses a freed block again: it is mapped, and what a small working set left in the cache is still there.

Before: 40 times ``torch.empty(8 MiB).fill_(1)``: up to 2,048 page faults each time.
After ``keep_buffers()``: page faults the first time only.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import os
import platform

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_FIRST_THRESHOLD = 128 << 10  # of both, in a new process
_LARGEST_MMAP_THRESHOLD = 32 << 20  # HEAP_MAX_SIZE / 2 on 64 bits; mallopt refuses more
_LARGEST_TRIM_THRESHOLD = (1 << 31) - 1  # mallopt takes an int


def keep_buffers(keep: bool = True) -> bool:
    """Let malloc keep freed blocks of up to 32 MiB in this process, or return them to the kernel again.

    Large activations that a call frees then serve the next call, without new page faults. The setting holds for the
    whole process: all code that allocates by malloc keeps its freed memory too, and the resident size of the process
    stays near its peak. It works with glibc only. Where environment variables set the thresholds
    (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``), they are left as they are.

    Args:
        keep: True keeps freed blocks. False sets both thresholds to the 128 KiB that a process starts with, and
            returns free memory at once; glibc then no longer raises them by itself.

    Returns:
        True if malloc took the setting; False without glibc, or where the environment sets the thresholds.

    Example::

        >>> import fx_partition
        >>> could = fx_partition.keep_buffers()  # once, before the calls of a model
        >>> fx_partition.keep_buffers(False) == could
        True
    """
    if platform.libc_ver()[0] != "glibc" or _set_by_the_user():
        return False
    largest = (_LARGEST_MMAP_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
    mmap_threshold, trim_threshold = largest if keep else (_FIRST_THRESHOLD, _FIRST_THRESHOLD)
    try:
        library = ctypes.CDLL(None)
        taken = library.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        taken = taken and library.mallopt(_M_TRIM_THRESHOLD, trim_threshold)
        if taken and not keep:
            library.malloc_trim(0)
    except (OSError, AttributeError):  # linked statically, or another malloc in its place
        return False
    return bool(taken)


def _set_by_the_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    named = any(name in tunables for name in ("malloc.mmap_threshold", "malloc.trim_threshold"))
    return named or any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
