"""Measure what a kernel allocates on this processor, by running it once on zeros.

oneDNN chooses among many implementations by the processor's instructions, its caches and the number of threads, and
each has its own way to allocate scratch memory, for which there is no formula. So a call runs once, on new operands
(the model's tensors are never touched) and in a new thread (without the caller's modes and profiler). The result is
kept in the process, and on disk under a hash of everything on which the choice depends.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fx_partition.hardware.cache_dir import cache_directory, put_whole
from fx_partition.hardware.processor import kernel_choice

from ..capture.fake_tensors import allocation_sizes
from .kernel_call import BoundCall, Operand

# Limits on one measurement. They are no times, as it must not depend on the machine's load whether a call is measured.
MOST_BYTES = 2**28
MOST_FLOPS = 2**34

# The version of this measurement; change it when the same call would give another figure.
_VERSION = 2

_peaks: dict[str, int | None] = {}


def peak_bytes(call: BoundCall) -> int | None:
    """Return the most bytes that a call has allocated at one time, results included; None if it cannot be measured.

    It cannot if it would allocate more than `MOST_BYTES` or take more than `MOST_FLOPS`, or if the operator refuses
    the operands. Equal calls run once on a machine.
    """
    if call.bytes > MOST_BYTES or call.flops > MOST_FLOPS:
        return None
    key = hashlib.sha256(f"{_VERSION} {kernel_choice()!r} {call.text}".encode()).hexdigest()[:40]
    if key not in _peaks:
        path = _path(key)
        found = _read(path)
        if found is None:
            found = in_new_thread(lambda: _measured(call))
            if found is not None:
                _write(path, found)
        _peaks[key] = found
    return _peaks[key]


def _measured(call: BoundCall) -> int | None:
    leaves = [leaf.allocate() if isinstance(leaf, Operand) else leaf for leaf in call.arguments]
    args, kwargs = pytree.tree_unflatten(leaves, call.structure)
    try:
        with torch.no_grad():
            sizes = allocation_sizes(lambda: call.func(*args, **kwargs))
    except (RuntimeError, ValueError, IndexError):  # this build of torch cannot run the operator on a CPU
        return None
    return max(0, *accumulate(sizes), 0)


def in_new_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a new thread, with torch's number of threads, and return its result.

    Raises:
        Exception: any exception of the function.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        torch.get_num_threads()  # sets this thread's number; oneDNN would run without it, on another number
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="fx_partition-measure", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _path(key: str) -> Path | None:
    """Return the file that keeps a call's figure; None if there is no cache directory."""
    try:
        folder = cache_directory() / "kernel_memory"
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder / f"{key}.json"


def _read(path: Path | None) -> int | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["bytes"] if path else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or truncated: measure again
    return kept if type(kept) is int and kept >= 0 else None


def _write(path: Path | None, peak: int) -> None:
    if path:
        try:
            put_whole(path, json.dumps({"bytes": peak}).encode())
        except OSError:
            return  # another process will measure it again
