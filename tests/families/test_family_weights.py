"""Every weight and input of a family changes its output; otherwise other tests could miss a fault in it."""

import pytest

from . import FAMILIES, Missing
from .held import EACH
from .matter import assert_inputs_matter, assert_weights_matter


@pytest.mark.parametrize("name", EACH)
def test_weights_and_inputs_matter(name: str) -> None:
    try:
        assert_inputs_matter(FAMILIES[name])
        assert_weights_matter(FAMILIES[name])
    except Missing as missing:
        pytest.skip(str(missing))
