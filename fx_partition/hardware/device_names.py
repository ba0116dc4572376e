"""Look up devices by name, and let a name stand for its usable bytes wherever an option takes a size."""

from __future__ import annotations

from fx_partition.common.units import parse_bytes, shown

from .detect import detect
from .records import Device, find, normalise, suggest


def find_device(name: str) -> Device:
    """Return the device of a name: a record, or one of this machine ("cuda:0", "cpu:L2", "auto" for the first).

    Raises:
        ValueError: no device has this name; the message lists close matches.
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
    """Return the usable on-chip bytes of the device that `find_device` finds.

    Example::

        >>> usable_bytes("EdgeTPU")
        8178892
    """
    return find_device(name).usable_bytes


def is_device_name(size: object) -> bool:
    """Return whether a budget names a device: a name starts with a letter, and a size never does."""
    return isinstance(size, str) and size.strip()[:1].isalpha()


def parse_budget(size: int | str, name: str = "cache_bytes") -> int:
    """Return a positive number of bytes from a size (see `parse_bytes`) or from the name of a device.

    Args:
        size: a size; or a name (``"H100-SXM"``), for the usable on-chip bytes of that device.
        name: the option's name, for the error message.

    Raises:
        ValueError: ``size`` is neither a size nor a name, is not positive, or is more than a plan can count.

    Example::

        >>> parse_budget("6MiB"), parse_budget("EdgeTPU")
        (6291456, 8178892)
    """
    if not is_device_name(size):
        return parse_bytes(size, name)
    text = str(size).strip()
    try:
        return parse_bytes(usable_bytes(text), name)
    except ValueError as error:
        raise ValueError(
            f'{name}={shown(text)} is not a size such as "6MiB", nor the name of a device such as "H100-SXM": {error}'
        ) from error
