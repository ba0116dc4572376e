"""Byte counts as text."""

from __future__ import annotations

import pytest

from fx_partition.common.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "number"),
    [(6291456, 6291456), ("6MiB", 6 * 2**20), ("6 mib", 6 * 2**20), ("6MB", 6 * 10**6), ("1.5KiB", 1536), ("12", 12),
     (" 3 b ", 3), ("2GiB", 2**31), ("1TB", 10**12)],
)  # fmt: skip
def test_sizes(text: int | str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "MiB", "6XB", "-1", "1e6", "0x10", None, True, 1.0, 0, -4])
def test_what_is_not_a_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"budget="):
        parse_bytes(text, "budget")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (6291456, "6 MiB"), (-2048, "-2 KiB"),
     (3 * 2**30, "3 GiB"), (10 * 2**20, "10 MiB"), (100 * 2**10, "100 KiB")],
)  # fmt: skip
def test_sizes_for_a_reader(number: int, text: str) -> None:
    assert format_bytes(number) == text
    if number > 0:
        assert parse_bytes(text) == number
