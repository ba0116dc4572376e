"""Names of devices, and the number of bytes that each stands for wherever a size is asked for."""

from __future__ import annotations

from .detect import detect
from .records import Device, find, normalise, suggest


def find_device(name: str) -> Device:
    """The record of a name, a device of this machine ("cuda:0", "cpu:L2"; see `detect`), or, for "auto", its first one.

    Raises:
        ValueError: there is none of this name; it lists close matches.
    """
    record = find(name)
    if record is not None:
        return record
    here = detect()
    if normalise(name) == "auto":
        return here[0]
    for found in here:
        if normalise(found.name) == normalise(name):
            return found
    names = ", ".join(f'"{found.name}"' for found in here)
    raise ValueError(f'no device is named {name!r}; {suggest(name)}; of this machine: {names} ("auto" is the first)')


def usable_bytes(name: str) -> int:
    """The usable on-chip bytes of the device that `find_device` finds.

    Example::

        >>> usable_bytes("EdgeTPU")
        8178892
    """
    return find_device(name).usable_bytes
