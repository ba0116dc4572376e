"""Byte counts as people write them: "6MiB", "6 MB", 6291456, or the name of a device; and seconds for readers."""

from __future__ import annotations

import re
from collections.abc import Callable

_UNITS = {
    "": 1, "b": 1,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


# What names stand for; the passes know no device, so whoever does says so here.
_named: list[Callable[[str], int]] = []


def let_names_be_sizes(bytes_of: Callable[[str], int]) -> None:
    """From now on a name is a size where `parse_bytes` reads one.

    Args:
        bytes_of: the bytes that a name stands for; a ValueError, with the way out, for one that stands for none.
    """
    _named[:] = [bytes_of]


def parse_bytes(size: int | str, name: str = "cache_bytes") -> int:
    """A positive number of bytes from an int, a text with a unit, or the name of a device.

    Args:
        size: bytes; or text such as ``"6MiB"``, in binary (KiB, MiB, GiB) or decimal units (KB, MB, GB); or a name,
            which starts with a letter as no size does, for the usable on-chip bytes of that device (``"H100-SXM"``).
        name: what to call it in an error.

    Raises:
        ValueError: neither a size nor a name, or not positive.

    Example::

        >>> parse_bytes("6MiB")
        6291456
    """
    if isinstance(size, int) and not isinstance(size, bool):
        number = size
    elif isinstance(size, str) and size.strip()[:1].isalpha():
        number = _bytes_of_name(size.strip(), name)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size) if isinstance(size, str) else None
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(
                f'{name}={size!r} is not a size; write bytes (6291456), a text such as "6MiB" or "6MB", or the name of '
                'a device such as "H100-SXM"'
            )
        number = round(float(match[1]) * _UNITS[match[2].lower()])
    if number <= 0:
        raise ValueError(f"{name}={size!r} leaves no memory; it must be positive")
    return number


def _bytes_of_name(text: str, name: str) -> int:
    try:
        return _named[0](text)
    except ValueError as error:
        raise ValueError(
            f'{name}={text!r} is not a size such as "6MiB", nor the name of a device such as "H100-SXM": {error}'
        ) from error


def format_bytes(number: int) -> str:
    """Bytes for a reader: binary units, at most two decimals. ``format_bytes(6291456) == "6 MiB"``."""
    sign, number = ("-", -number) if number < 0 else ("", number)
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{sign}{number / scale:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{sign}{number} B"


def format_seconds(seconds: float) -> str:
    """``format_seconds(0.00125) == "1.25 ms"``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
