"""Names that stand for a number of bytes wherever a size is asked for."""

from __future__ import annotations

from .detect import detect
from .records import device, normalise, suggest


def usable_bytes(name: str) -> int:
    """The usable on-chip bytes of a device.

    Args:
        name: of a record ("H100-SXM"), of a device of this machine ("cuda:0", "cpu:L2"; see `detect`), or "auto": the
            first device of this machine.

    Raises:
        ValueError: there is none of this name; it lists close matches.

    Example::

        >>> usable_bytes("EdgeTPU")
        8178892
    """
    try:
        return device(name).usable_bytes
    except ValueError:
        here = detect()
    if normalise(name) == "auto":
        return here[0].usable_bytes
    for found in here:
        if normalise(found.name) == normalise(name):
            return found.usable_bytes
    names = ", ".join(f'"{found.name}"' for found in here)
    raise ValueError(f'no device is named {name!r}; {suggest(name)}; of this machine: {names} ("auto" is the first)')
