"""`split` of each family is the model: bits, types, strides and state."""

import pytest

from .held import EACH, hold


@pytest.mark.parametrize("name", EACH)
def test_split_is_the_model(name: str) -> None:
    hold("split", name)
