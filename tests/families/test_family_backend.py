"""The backend's partitions of each family, run operator by operator, compute what the model does."""

import pytest

from .held import hold, those


@pytest.mark.parametrize("name", those("backend"))
def test_the_backend_equals_eager(name: str) -> None:
    hold("backend", name)
