"""Settings of all tests: the folder of tests on the path, hypothesis without a clock, a fresh Dynamo for each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes depends on what else the machine does; no test is decided by that.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """No test sees what another compiled, nor the plans that live as long as it."""
    yield
    if "torch._dynamo" in sys.modules:
        import torch

        torch._dynamo.reset()
