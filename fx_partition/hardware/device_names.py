"""Names of devices, and the number of bytes that each stands for wherever a size is asked for."""

from __future__ import annotations

from fx_partition.common.units import parse_bytes, shown

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


def parse_budget(size: int | str, name: str = "cache_bytes") -> int:
    """A positive number of bytes from a size, as `parse_bytes` reads it, or from the name of a device.

    Args:
        size: a size; or a name, which starts with a letter as no size does, for the usable on-chip bytes of that device
            (``"H100-SXM"``).
        name: what to call it in an error.

    Raises:
        ValueError: neither a size nor a name, not positive, or more than a plan can count.

    Example::

        >>> parse_budget("6MiB"), parse_budget("EdgeTPU")
        (6291456, 8178892)
    """
    if not isinstance(size, str) or not size.strip()[:1].isalpha():
        return parse_bytes(size, name)
    text = size.strip()
    try:
        return parse_bytes(usable_bytes(text), name)
    except ValueError as error:
        raise ValueError(
            f'{name}={shown(text)} is not a size such as "6MiB", nor the name of a device such as "H100-SXM": {error}'
        ) from error
