"""Partitions that inductor compiles are as near to eager as inductor is on its own."""

import pytest

from .held import hold, those


@pytest.mark.parametrize("name", those("inductor"))
def test_the_error_is_inductors_own(name: str) -> None:
    hold("inductor", name)
