"""Measure the most bytes that a call holds from malloc at one time: torch's, oneDNN's, MKL's and any other library's.

`malloc_count.c`, preloaded, replaces malloc (Linux, glibc). A script begins with `restart_counted`, which starts it
again with the library. Memory that a library keeps from a first call (packed weights, thread-local scratch) is not
counted in a later call.

Example, in a script::

    restart_counted()
    print(malloc_bytes(lambda: torch.ones(1000, 1000).sin()))
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("malloc_count.c")
_COUNTED = "FX_PARTITION_MALLOC_COUNTED"


def restart_counted() -> str:
    """Start the running script again with malloc counted, unless malloc is counted already.

    MKL frees its buffers after each call in that process, so that every call shows them.

    Returns:
        Why malloc cannot be counted here; "" if it is counted.
    """
    if os.environ.get(_COUNTED):
        return ""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        return "malloc is counted on Linux, with a C compiler"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "malloc_count.so"
        built = subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", library, _SOURCE], capture_output=True, text=True
        )
        if built.returncode:
            return f"malloc_count.c does not compile here: {built.stderr.strip().splitlines()[0]}"
        environment = {**os.environ, "LD_PRELOAD": str(library), "MKL_DISABLE_FAST_MM": "1", _COUNTED: str(library)}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)


def is_counted() -> bool:
    return bool(os.environ.get(_COUNTED))


def malloc_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call held of malloc at one time, its results included; the second of two calls.

    Raises:
        RuntimeError: malloc is not counted in this process.
    """
    if not is_counted():
        raise RuntimeError("malloc is not counted here: begin with restart_counted()")
    library = ctypes.CDLL(os.environ[_COUNTED])
    library.malloc_count_peak.restype = ctypes.c_long
    call()
    gc.collect()
    gc.disable()  # memory held before must not be freed meanwhile
    try:
        library.malloc_count_begin()
        result = call()
        found = int(library.malloc_count_peak())
        del result
    finally:
        gc.enable()
    return found
