"""The measured peak of a call is the most bytes that it had allocated at one time."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch

from fx_partition.backends.measure.peak_allocation import allocated_bytes, change, memory_events

CPU = torch.device("cpu")


def test_the_peak_counts_intermediates_and_results_and_not_arguments() -> None:
    x = torch.ones(1000)
    assert allocated_bytes(lambda: x.sin().cos(), CPU) == 8000
    assert allocated_bytes(lambda: x, CPU) == 0


def test_what_is_freed_before_the_next_allocation_counts_once() -> None:
    def call() -> None:
        for _ in range(3):
            torch.empty(1000)

    assert allocated_bytes(call, CPU) == 4000


def test_what_was_there_before_does_not_count_when_it_is_freed() -> None:
    held = [torch.empty(5000), torch.empty(5000)]

    def call() -> torch.Tensor:
        held.pop()
        return torch.empty(1000)

    assert allocated_bytes(call, CPU) == 4000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    x = torch.ones(1024, device="cuda")
    assert allocated_bytes(lambda: x.sin().cos(), torch.device("cuda")) == 8192


@pytest.mark.parametrize(("name", "peak"), [("cpu", 7000), ("cuda:0", 1024), ("cuda:1", 512)])
def test_each_device_has_its_own_events(name: str, peak: int) -> None:
    keys = ("Device Type", "Device Id", "Addr", "Bytes")
    rows = [(0, -1, 1, 7000), (1, 0, 1, 512), (1, 1, 1, 512), (1, 0, 2, 512), (0, -1, 1, -7000), (1, 0, 1, -512)]
    events: list[dict[str, Any]] = [
        {"name": "[memory]", "ts": time, "args": {"Ev Idx": time, **dict(zip(keys, row, strict=True))}}
        for time, row in enumerate(rows)
    ]
    live: dict[int, int] = {}
    found = memory_events(events, torch.device(name))
    assert max(accumulate(change(live, address, size) for _, address, size in found)) == peak


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="meta"):
        allocated_bytes(lambda: None, torch.device("meta"))
