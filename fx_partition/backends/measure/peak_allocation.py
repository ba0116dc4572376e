"""The peak of the bytes that one call of compiled code allocates, to compare with a planned footprint.

The call is made twice, once to warm up: a first call may build what later calls reuse. Memory that was allocated before
the call and is freed in it does not count, neither up nor down: weights and arguments belong to the caller.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..devices.home_device import with_index

_TYPES = {"cpu": 0, "cuda": 1}  # the number of a device's type in a trace


def allocated_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the largest number of bytes that one call had allocated and not yet freed, its results included.

    Args:
        call: a function without arguments that may be called twice.
        device: the device whose memory to watch. The figures come from torch.profiler's memory events:
            what goes through torch's allocator on the calling thread. On CUDA that is the caching allocator, which
            rounds every block up to 512 bytes; its own statistics are left alone, as they belong to the user.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA GPU.

    Example::

        >>> x = torch.ones(1000, 1000)
        >>> allocated_bytes(lambda: x.sin().cos(), torch.device("cpu"))
        8000000
    """
    if device.type not in _TYPES:
        raise ValueError(f"allocations on {device.type!r} are not recorded; only those of cpu and cuda are")
    call()
    live: dict[int, int] = {}
    total = peak = 0
    for _, address, size in memory_events(recorded(call), device):
        total += change(live, address, size)
        peak = max(peak, total)
    return peak


def recorded(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the profiler's events of one call, memory included, from its Chrome trace, their only public form."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()  # kept to the end, so that the results count as long as the call runs
        del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return events


def memory_events(events: list[dict[str, Any]], device: torch.device) -> list[tuple[float, int, int]]:
    """Return (time, address, bytes) of every allocation on a device in order; a release has bytes below 0."""
    here = with_index(device)
    found = sorted(
        (event["ts"], event["args"]["Ev Idx"], event["args"]["Addr"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]"
        and event["args"]["Device Type"] == _TYPES[here.type]
        and here.index in (None, event["args"]["Device Id"])
    )
    return [(time, address, size) for time, _, address, size in found]


def change(live: dict[int, int], address: int, size: int) -> int:
    """Return by how much one event changes the ``live`` bytes; the release of an older block changes nothing."""
    if size >= 0:
        live[address] = size
        return size
    return -live.pop(address, 0)
