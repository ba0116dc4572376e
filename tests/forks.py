"""Run a function in a forked child, without waiting for a child that hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

_SECONDS = 60  # for a child that hangs


def in_a_child(use: Callable[[], Any]) -> str:
    """What ``use`` raises in a forked child, as ``type: message``, or else the text of what it returns.

    The child ends as those of multiprocessing do, without the end of the interpreter.

    Returns:
        "hangs" where the child does not come to its end, and is killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(use()).encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return os.read(reader, 60_000).decode() if ends(child) else "hangs"
    finally:
        os.close(reader)


def ends(child: int) -> bool:
    """Whether a child comes to its end; else it is killed."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
