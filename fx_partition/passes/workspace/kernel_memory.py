"""What a kernel allocates when it runs, found by running it once on zeros: of this processor, and not by a formula.

oneDNN chooses among many implementations by the processor's instructions, its caches and the number of threads, and
each takes scratch memory in a way of its own. So a call is run once, on operands of its own (the model's tensors are
never touched), in a thread of its own (no mode of the caller's is there, and no profiler that the caller started), and
remembered: in the process, and on disk by all that the choice depends on.
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

# What planning may take for one call. Numbers, and no clock: whether a figure is measured must not depend on the load.
MOST_BYTES = 2**28
MOST_FLOPS = 2**34

# Of how a call is measured: another number where the same call would give another figure.
_VERSION = 2

_peaks: dict[str, int | None] = {}


def peak_bytes(call: BoundCall) -> int | None:
    """The most bytes that the call has allocated at one time, its results included; None if it cannot be run here.

    It cannot be run where it is expected to allocate more than `MOST_BYTES` or to take more than `MOST_FLOPS`, and
    where the operator refuses such operands. Equal calls are run once on a machine.
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
    except (RuntimeError, ValueError, IndexError):  # an operator that this build of torch does not run on a CPU
        return None
    return max(0, *accumulate(sizes), 0)


def in_new_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own, on as many threads as torch has, and return what it returns.

    Raises:
        Exception: what it raises.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        torch.get_num_threads()  # torch sets a new thread's number on first use, and oneDNN would not ask
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
    """Where the figure of a call is kept; None where this machine keeps nothing."""
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
        return None  # not there, or cut short: measured again
    return kept if type(kept) is int and kept >= 0 else None


def _write(path: Path | None, peak: int) -> None:
    if path:
        try:
            put_whole(path, json.dumps({"bytes": peak}).encode())
        except OSError:
            return  # another process will measure it again
