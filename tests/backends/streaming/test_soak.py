"""A long stream with failures in it: nothing is lost or reordered, memory stays flat, no thread is left."""

import resource
import threading
from itertools import islice

import pytest
import torch
from torch import nn

import fx_partition

REQUESTS = 100_000
EVERY = 1000
WIDTH = 64


class Numbered(nn.Module):
    """Looks a row up (an index out of range is an exception of the first stage) and hands the number on."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, row, number):
        return self.layers(self.table(row)), number + 1


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def own_threads():
    return sum(thread.name.startswith("fx_partition") for thread in threading.enumerate())


def requests():
    for i in range(REQUESTS):
        row = 99 if i % EVERY == EVERY - 1 else i % 16
        yield torch.tensor([row]), torch.tensor([i])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["map", "submit"])
def test_a_hundred_thousand_requests(way, capfd):
    model = Numbered().eval()
    with torch.no_grad():
        rows = [model(torch.tensor([row]), torch.tensor([0]))[0] for row in range(16)]
    before = own_threads()
    with fx_partition.pipeline(model, (torch.tensor([0]), torch.tensor([0]))) as pipe:
        threads = own_threads()
        failed, sizes = 0, []
        for i, result in enumerate(_run(pipe, way)):
            if i % EVERY == EVERY - 1:
                assert isinstance(result, IndexError)
                failed += 1
            else:
                found, number = result
                assert number.item() == i + 1
                torch.testing.assert_close(found, rows[i % 16])
            if i % (REQUESTS // 10) == REQUESTS // 10 - 1:
                sizes.append(resident_bytes())
        assert i + 1 == REQUESTS
        assert failed == REQUESTS // EVERY
        assert own_threads() <= threads + 1  # one more gives futures their results
        # The first tenth warms allocators up; a tensor lost a request would be tens of megabytes.
        assert sizes[-1] - sizes[1] < 8 << 20, sizes
    assert own_threads() == before


def _run(pipe, way):
    if way == "map":
        yield from pipe.map(requests(), return_exceptions=True)
        return
    stream = requests()
    while futures := [pipe.submit(*request) for request in islice(stream, 100)]:
        for future in futures:
            yield future.exception(timeout=60) or future.result()
