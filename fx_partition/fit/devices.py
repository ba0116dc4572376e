"""Read what a user says of the devices: their sizes, their number, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import TypeAlias

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import parse_bytes, parse_count, shown

#: "2x80GiB", "24GiB,24GiB,16GiB", "80GiB" (as many as needed), 2 (the smallest size), or a list of sizes.
Devices: TypeAlias = "int | str | Sequence[int | str]"

MOST = 4096


@dataclass(frozen=True)
class DeviceSizes:
    """Devices in order.

    Attributes:
        sizes: bytes of each device; one size if the number is to be found; empty if the size is to be found.
        count: the number of devices; 0 if it is to be found.
        margin: the share of each device that stays empty.
    """

    sizes: tuple[int, ...]
    count: int
    margin: Fraction

    def usable(self, size: int) -> int:
        """Return the bytes of a device that may be filled."""
        return floor(size * (1 - self.margin))

    def size_for(self, usable: int) -> int:
        """Return the smallest size of a device of which ``usable`` bytes may be filled."""
        return ceil(usable / (1 - self.margin))


def read_devices(devices: Devices, margin: float | str | Fraction = 0) -> DeviceSizes:
    """Return the devices that a user names.

    Example::

        >>> read_devices("2x80GiB").sizes, read_devices("80GiB").count, read_devices(2).count
        ((85899345920, 85899345920), 0, 2)

    Raises:
        PartitionError: the text names neither sizes nor a number, or the margin is not a share from 0 up to 1.
    """
    share = _share(margin)
    if isinstance(devices, int) and not isinstance(devices, bool):
        return DeviceSizes((), _count(str(devices)), share)
    if isinstance(devices, str):
        if devices.strip().isdecimal():
            return DeviceSizes((), _count(devices.strip()), share)
        groups = [_group(part) for part in devices.split(",")]
        if len(groups) == 1 and groups[0][1] == 0:
            return DeviceSizes((groups[0][0],), 0, share)
        sizes = [size for size, count in groups for _ in range(count or 1)]
    elif isinstance(devices, Sequence):
        sizes = [_size(size) for size in devices]
    else:
        raise PartitionError(f"devices={shown(devices)} {_FORMS}")
    if not 1 <= len(sizes) <= MOST:
        raise PartitionError(f"devices names {len(sizes)} devices; name 1 to {MOST}")
    return DeviceSizes(tuple(sizes), len(sizes), share)


_FORMS = 'is not a set of devices; write "2x80GiB", "24GiB,24GiB,16GiB", "80GiB" for as many as needed, or 2'


def _group(text: str) -> tuple[int, int]:
    """Return a size and a number of devices, 0 for none: "2x80GiB"."""
    count, times, size = text.partition("x")
    return (_size(size), _count(count.strip())) if times else (_size(text), 0)


def _size(size: int | str) -> int:
    try:
        return parse_bytes(size.strip() if isinstance(size, str) else size, "devices")
    except ValueError as error:
        raise PartitionError(f"devices={shown(size)} {_FORMS}") from error


def _count(text: str) -> int:
    try:
        return parse_count(text, "devices", MOST)
    except ValueError as error:
        raise PartitionError(str(error)) from error


def _share(margin: float | str | Fraction) -> Fraction:
    try:
        if isinstance(margin, str) and margin.strip().endswith("%"):
            share = Fraction(margin.strip()[:-1]) / 100
        else:
            share = Fraction(margin)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
        raise PartitionError(f'margin={shown(margin)} is not a share; write "10%" or 0.1') from error
    if not 0 <= share < 1:
        raise PartitionError(f'margin={shown(margin)} leaves nothing; write a share below 1, such as "10%" or 0.1')
    return share
