"""Read bytes ("6MiB", "6 MB", 6291456) and counts as people write them, and write them for readers.

Every number has bounds: one beyond them would take all memory, or overflow, long after the user typed it.
"""

from __future__ import annotations

import re
from fractions import Fraction

#: The largest number of bytes, or size of a dimension, that torch and a plan's arrays can count.
LARGEST = 2**63 - 1

_UNITS = {
    "": 1, "b": 1,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip


_SIZE = r"\s*([0-9]{1,40}(?:\.[0-9]{1,40})?)\s*([a-zA-Z]*)\s*"


def parse_bytes(size: int | str, name: str = "cache_bytes") -> int:
    """Return a positive number of bytes; `device_names.parse_budget` also accepts the name of a device.

    Args:
        size: bytes; or text such as ``"6MiB"``, in binary (KiB, MiB, GiB) or decimal units (KB, MB, GB).
        name: the option's name, for the error message.

    Raises:
        ValueError: ``size`` is not a size, is not positive, or is more than `LARGEST`.

    Example::

        >>> parse_bytes("6MiB")
        6291456
    """
    if isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        match = re.fullmatch(_SIZE, size) if isinstance(size, str) else None
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(
                f'{name}={shown(size)} is not a size; write bytes (6291456), a text such as "6MiB" or "6MB", or the '
                'name of a device such as "H100-SXM"'
            )
        number = round(Fraction(match[1]) * _UNITS[match[2].lower()])
    if number <= 0:
        raise ValueError(f"{name}={shown(size)} leaves no memory; it must be positive")
    if number > LARGEST:
        raise ValueError(f"{name}={shown(size)} is more than the {LARGEST} bytes that a plan can count")
    return number


def parse_count(text: str, name: str, most: int) -> int:
    """Read a whole number from 1 to ``most``; ``name`` is the option's name, for the error message.

    Raises:
        ValueError: the text is something else.

    Example::

        >>> parse_count("8", "--steps", 100)
        8
    """
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) else 0
    if not 1 <= number <= most:
        raise ValueError(f"{name}={shown(text)} is not a whole number from 1 to {most}")
    return number


def shown(value: object) -> str:
    """Return a value as text of at most 80 characters for an error message; what a user gives may have any length.

    Example::

        >>> shown("much"), shown(10**9999)
        ("'much'", 'a number of 33216 bits')
    """
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print thousands of digits
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def format_bytes(number: int) -> str:
    """Write bytes in binary units with at most two decimals: ``format_bytes(6291456) == "6 MiB"``."""
    sign, number = ("-", -number) if number < 0 else ("", number)
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{sign}{number / scale:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{sign}{number} B"


def format_seconds(seconds: float) -> str:
    """Write seconds with three digits: ``format_seconds(0.00125) == "1.25 ms"``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
