"""Every stage has a stream that no other has, although torch's pool gives the same 32 again and again."""

from __future__ import annotations

import pytest
import torch

from fx_partition.backends.devices.cuda_driver import DRIVER
from fx_partition.common.errors import PartitionError

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices, as the software GPU has")


def test_torch_s_pool_wraps_around_and_the_streams_of_stages_do_not() -> None:
    device = torch.device("cuda:1")
    assert len({torch.cuda.Stream(device).cuda_stream for _ in range(40)}) == 32
    streams = []
    for _ in range(16):
        streams.append(DRIVER.own_stream(device))
        torch.cuda.Stream(device)  # the user's
    streams += [DRIVER.own_stream(device) for _ in range(16)]
    assert len({stream.cuda_stream for stream in streams}) == 32
    with pytest.raises(PartitionError, match="cuda:1 are all in use"):
        DRIVER.own_stream(device)
    streams.pop()
    assert DRIVER.own_stream(device).cuda_stream not in {stream.cuda_stream for stream in streams}
