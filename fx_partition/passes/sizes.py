"""Byte counts as people write them: "6MiB", "6 MB", 6291456."""

from __future__ import annotations

import re

_UNITS = {
    "": 1, "b": 1,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


def parse_bytes(size: int | str, name: str = "cache_bytes") -> int:
    """A positive number of bytes from an int or a text with a unit: binary (KiB, MiB, GiB) or decimal (KB, MB, GB).

    Args:
        size: bytes, or text such as ``"6MiB"``.
        name: what to call it in an error.

    Raises:
        ValueError: not a size, or not positive.

    Example::

        >>> parse_bytes("6MiB")
        6291456
    """
    if isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size) if isinstance(size, str) else None
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f'{name}={size!r} is not a size; write bytes (6291456) or a text such as "6MiB" or "6MB"')
        number = round(float(match[1]) * _UNITS[match[2].lower()])
    if number <= 0:
        raise ValueError(f"{name}={size!r} leaves no memory; it must be positive")
    return number


def format_bytes(number: int) -> str:
    """Bytes for a reader: binary units, at most two decimals. ``format_bytes(6291456) == "6 MiB"``."""
    sign, number = ("-", -number) if number < 0 else ("", number)
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{sign}{number / scale:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{sign}{number} B"
