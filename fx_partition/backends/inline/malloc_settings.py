"""Keep freed memory in the process, so that large activations are not returned to the kernel at every call.

glibc's malloc takes a block of 128 KiB or more (its threshold grows to 32 MiB as such blocks are freed) from the kernel
by ``mmap`` and returns it when it is freed; it also returns the top of its heap when enough of it is free. Then every
call of a model pays for new zeroed pages, one fault each, and none of them is in a cache. With both thresholds raised,
the next call uses a freed block again: it is mapped, and what a small working set left in the cache is still there.

Before: 40 times ``torch.empty(8 MiB).fill_(1)``: up to 2,048 page faults each time.
After ``keep_buffers()``: page faults the first time only.

The setting holds for the whole process and not for this library alone: all other code that allocates by malloc keeps
its freed memory too, and the resident size of the process stays near its peak. Where the user has set the same
thresholds by environment variables (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``), they
are left as they are.

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
    """Let malloc keep freed blocks of up to 32 MiB for the rest of the process. Further calls do nothing.

    Returns:
        Whether malloc took the setting: False without glibc, or where the environment sets the thresholds.

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
