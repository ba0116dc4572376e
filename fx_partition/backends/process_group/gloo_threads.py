"""Keep gloo's event threads from taking a core away from a rank in the middle of a send.

A send of gloo writes to its socket under a lock of the connection. Where ranks fill their cores, arriving bytes wake
gloo's event thread, which preempts the sender. It tries the lock, fails, and polls again, and so uses up its time slice
while the sender, which holds the lock, waits for the core. Under ``SCHED_BATCH`` Linux runs a thread only where a core
is free, or where its thread waits or yields, and lets it preempt no other: an event thread should run just so. The
policy needs no privileges.

Tried with torch 2.13.0, on Linux 6.18. On a system without this policy, or with other thread names, nothing changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")
_NAME = "gloo_tcp_loop"


@contextmanager
def no_preemption() -> Iterator[None]:
    """Set SCHED_BATCH for the event threads that gloo starts inside the ``with`` block; leave earlier ones alone."""
    before = _event_threads()
    yield
    for thread in _event_threads() - before:
        with suppress(OSError):  # the thread has ended
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def let_others_run() -> None:
    """Yield this core to an event thread that waits for it; costs a microsecond if there is none."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def _event_threads() -> set[int]:
    found = set()
    if hasattr(os, "SCHED_BATCH") and _TASKS.is_dir():
        for task in _TASKS.iterdir():
            with suppress(OSError):
                if (task / "comm").read_text().strip() == _NAME:
                    found.add(int(task.name))
    return found
