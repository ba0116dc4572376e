"""Each stage has a stream of its own, although torch's pool gives the same 32 again and again."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch

from fx_partition.backends.devices import cuda_driver
from fx_partition.backends.devices.cuda_driver import Driver, Stream
from fx_partition.common.errors import PartitionError

ONE, OTHER = torch.device("cuda:0"), torch.device("cuda:1")


class PooledStream:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's pool: 32 streams a device, in turn; nobody owns any."""
    counters = {ONE: itertools.count(), OTHER: itertools.count()}
    monkeypatch.setattr(
        torch.cuda, "Stream", lambda device: PooledStream(1 + next(counters[device]) % 32)
    )
    monkeypatch.setattr(cuda_driver, "_OWNED", weakref.WeakValueDictionary())


def taken(count: int, device: torch.device) -> list[Stream]:
    return [Driver().own_stream(device) for _ in range(count)]


def handles(streams: list[Stream]) -> set[int]:
    return {stream.cuda_stream for stream in streams}


def test_no_stream_is_given_twice_although_the_user_takes_some_between() -> None:
    streams = taken(20, ONE)
    for _ in range(15):
        torch.cuda.Stream(ONE)
    assert len(handles(streams + taken(12, ONE))) == 32


def test_beyond_the_pool_it_is_an_error_until_one_is_dropped() -> None:
    streams = taken(32, ONE)
    with pytest.raises(PartitionError, match=r"32 streams.*cuda:0.*close pipelines"):
        Driver().own_stream(ONE)
    Driver().own_stream(OTHER)
    dropped = streams.pop(7).cuda_stream
    assert handles(taken(1, ONE)) == {dropped}


def test_copies_keep_off_the_streams_of_stages_while_others_are_left() -> None:
    driver = Driver()
    streams = taken(31, ONE)
    assert handles([driver.stream(ONE) for _ in range(40)]) == set(range(1, 33)) - handles(streams)
    streams += taken(1, ONE)
    assert driver.stream(ONE).cuda_stream in handles(streams)
