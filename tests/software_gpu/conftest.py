"""Tests here need the software GPU; without it they are skipped, for one reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import Machine, is_preloaded

HERE = Path(__file__).parent
DEVICES = 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_preloaded():
        return
    here = [item for item in items if HERE in item.path.parents]
    if here:  # one of them stands for all, so that the reason is read once
        reason = f"{len(here)} tests need torch's CUDA build on the software GPU: make test-software-gpu"
        here[0].add_marker(pytest.mark.skip(reason=reason))
        config.hook.pytest_deselected(items=here[1:])
        items[:] = [item for item in items if item not in here[1:]]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The machine, with all devices in order afterwards; each test has the schedule of seed 0."""
    machine = Machine()
    machine.seed(0)
    yield machine
    machine.forget_error()
    for device in range(DEVICES):
        machine.repair(device)
        machine.set_memory(device, 8 << 30)
