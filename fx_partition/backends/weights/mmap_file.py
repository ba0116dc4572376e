"""A file in the address space of the process: its pages are read when they are first used, and can be released.

Before: a checkpoint of 140 GB on disk.
After ``map_file``: a buffer of 140 GB, of which nothing is in memory. Reading a byte loads its page; ``give_back``
releases pages, and reading them again would load them from the file once more.

Pages are private to the process: what is written to them is never written to the file. The file must not shrink while
it is mapped: reading a page that it no longer has ends the process (SIGBUS), as with ``torch.load(mmap=True)``.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

# Without this flag Linux refuses to map a file that is larger than memory, as all its pages might be written. Python
# names it from 3.13 on; the number is that of x86-64, AArch64 and RISC-V.
_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)


def map_file(path: Path) -> mmap.mmap:
    """Return a writable private mapping of a file that is not empty."""
    with path.open("rb") as file:
        if sys.platform != "linux":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | _NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def give_back(tensor: Tensor) -> None:
    """Release the pages that only this contiguous tensor of mapped memory fills; does nothing except on Linux.

    What was written to these pages is lost: they have the contents of the file again.
    """
    start = tensor.data_ptr()
    stop = start + tensor.numel() * tensor.element_size()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = stop - stop % mmap.PAGESIZE
    if sys.platform == "linux" and first < last:
        _libc().madvise(first, last - first, mmap.MADV_DONTNEED)


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
