"""The pytest plugin of a run on the software GPU: operators, L2 calls and Triton are in place before any test."""

from __future__ import annotations

import pytest

from . import l2_calls, operators, triton_stand_in
from .machine import Machine


def pytest_configure(config: pytest.Config) -> None:
    machine = Machine()
    config.stash[LAUNCHES] = triton_stand_in.install(machine)
    config.stash[OPERATORS] = operators.install(machine)
    l2_calls.install()


LAUNCHES = pytest.StashKey[list[triton_stand_in.Launch]]()
OPERATORS = pytest.StashKey[object]()
