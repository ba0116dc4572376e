"""Pipelines of stages that need no Python compute what the model does."""

import pytest

from .held import hold, those


@pytest.mark.parametrize("name", those("pipeline"))
def test_a_pipeline_equals_eager(name: str) -> None:
    hold("pipeline", name)
