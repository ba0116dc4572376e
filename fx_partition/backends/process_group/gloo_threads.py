"""The threads that gloo moves bytes with must not take a core away from a rank in the middle of a send.

A send of gloo writes to its socket under a lock of the connection. Where ranks fill their cores, its own event
thread is woken by what arrives meanwhile and preempts the sender; it tries the lock, does not get it, polls again, and
so burns its slice of time while the sender, who has the lock, waits for the core. Linux lets threads of ``SCHED_BATCH``
run where a core is free or its thread waits or yields, and does not let them preempt: that is what an event thread
should do here. No privileges are needed for it.

Tried with torch 2.13.0, on Linux 6.18. Where a system has no such policy or other names, nothing is changed.
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
    """Event threads that gloo starts inside do not preempt; those that were there before stay as they are."""
    before = _event_threads()
    yield
    for thread in _event_threads() - before:
        with suppress(OSError):  # it has ended
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def let_others_run() -> None:
    """Give this core to an event thread that waits for it, if there is one; takes a microsecond else."""
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
