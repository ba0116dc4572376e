"""The measured peak of a call on a GPU; the user's own statistics stay as they are."""

from __future__ import annotations

import pytest
import torch

from fx_partition.backends.measure.peak_allocation import allocated_bytes

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices, as the software GPU has")


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_the_peak_of_one_device(name: str) -> None:
    here, other = torch.device(name), torch.device("cuda:1" if name == "cuda:0" else "cuda:0")
    x, y = torch.zeros(1024, device=here), torch.zeros(4096, device=other)
    for device in (here, other):
        torch.empty(1 << 20, dtype=torch.uint8, device=device)
    before = [torch.cuda.max_memory_allocated(device) for device in (here, other)]

    def call() -> list[torch.Tensor]:
        torch.relu(x)  # freed before the next
        return [torch.relu(torch.relu(x)), torch.relu(y)]

    assert allocated_bytes(call, here) == 8192
    assert [torch.cuda.max_memory_allocated(device) for device in (here, other)] == before
