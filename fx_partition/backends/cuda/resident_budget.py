"""The budget of a device's name where stages keep their weights in L2 by a window.

A window keeps no more than the set-aside, which is a part of L2: of a stage that fills the usable bytes a part would be
streamed from memory on each request. So the name of a device stands for the smaller of the two::

    "H200"   usable 43 MiB, set-aside at most 37.5 MiB   ->   37.5 MiB
"""

from __future__ import annotations

from dataclasses import replace

from fx_partition.hardware.device_names import find_device, is_device_name, parse_budget
from fx_partition.passes.plan.request import CacheBytes, Request

from .l2_persistence import can_persist


def resident_request(request: Request, cache_bytes: CacheBytes | None) -> Request:
    """Return a request whose budgets a window can keep in L2.

    Args:
        request: the checked request.
        cache_bytes: the budgets as the user gave them; a number of bytes stays as it is.
    """
    sizes = [cache_bytes] if isinstance(cache_bytes, (int, str)) else list(cache_bytes or ())
    if not any(map(is_device_name, sizes)) or not can_persist():
        return request
    budgets = tuple(map(resident_bytes, sizes))
    return replace(request, budget=max(budgets), budgets=budgets if len(set(budgets)) > 1 else ())


def resident_bytes(size: int | str) -> int:
    """Return the bytes of a size; of a device's name the smaller of its usable bytes and its largest set-aside.

    Example::

        >>> [resident_bytes(size) / 2**20 for size in ("H200", "50MiB")]
        [37.5, 50.0]
    """
    budget = parse_budget(size)
    most = find_device(str(size).strip()).persist_bytes if is_device_name(size) else None
    return budget if most is None else min(budget, most)
