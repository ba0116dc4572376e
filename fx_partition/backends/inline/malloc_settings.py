"""Keep freed memory in the process, so that large activations are not returned to the kernel at every call.

glibc's malloc takes a block of 128 KiB or more (its threshold grows to 32 MiB as such blocks are freed) from the kernel
by ``mmap`` and gives it back when it is freed, and it gives back the top of its heap when enough of it is free. Then
every call of a model pays for fresh zeroed pages, one fault each, and none of them is in a cache. With both thresholds
raised a freed block serves the next call: it is mapped, and what a small working set left in the cache is still there.

Before: 40 times ``torch.empty(8 MiB).fill_(1)``: up to 2,048 page faults each.
After ``keep_buffers()``: those of the first time.

The setting is the process's, not one of this library's alone: whatever else allocates by malloc keeps its freed
memory too, and the process's resident size stays near its peak. Environment variables that set the same thresholds
(``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``) are left to decide: the user's word.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # HEAP_MAX_SIZE / 2 on 64 bits; mallopt refuses more
_LARGEST_TRIM_THRESHOLD = (1 << 31) - 1  # mallopt takes an int


@functools.cache
def keep_buffers() -> bool:
    """Let malloc keep what is freed, in blocks of up to 32 MiB, for the rest of the process. Further calls do nothing.

    Returns:
        Whether it applied: False without glibc, or where the environment sets the thresholds.

    Example::

        >>> keep_buffers() in (True, False)
        True
    """
    if platform.libc_ver()[0] != "glibc" or _set_by_the_user():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # linked statically, or another malloc in its place
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD))


def _set_by_the_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    named = any(name in tunables for name in ("malloc.mmap_threshold", "malloc.trim_threshold"))
    return named or any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
