"""What stays on chip follows the definition of distances, the hit curve and the contents of a scratchpad."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fx_partition.common.errors import PartitionError
from fx_partition.hardware.overheads import Overheads
from fx_partition.hardware.records import Device, device
from fx_partition.passes.timing.partition_work import Access, AccessKind, PartitionWork
from fx_partition.simulator.cache_model import Cache, Moved, Residency, Scratchpad, residency
from fx_partition.simulator.run_time import price

KIB = 1024


def work(*accesses: Access) -> PartitionWork:
    return PartitionWork(accesses, frozenset(), 0, 1, 1)


def weight(number: int, size: int) -> Access:
    return Access(("weight", number), size, AccessKind.WEIGHT)


def sharp(size: int) -> Device:
    """A cache that holds what was touched within ``size`` bytes, and nothing else."""
    curve = ((0.0, 1.0), (1.0, 1.0), (1.0 + 1e-9, 0.0))
    return replace(device("A100-SXM-40"), onchip_bytes=size, usable_bytes=size, hit_curve=curve)


def steady(memory: Residency, run: PartitionWork, times: int = 4) -> float:
    return [memory.run(run, frozenset()).bytes for _ in range(times)][-1]


@pytest.mark.parametrize("seed", range(5))
def test_misses_are_those_of_an_lru_cache(seed: int) -> None:
    pick = random.Random(seed)
    sizes = [pick.randint(1, 50) for _ in range(30)]
    touched = [pick.randrange(len(sizes)) for _ in range(4000)]  # more than the tree holds before it is compacted
    memory = Cache(sharp(300))
    recent: list[int] = []
    for number in touched:
        at = recent.index(number) if number in recent else None
        held = at is not None and sum(sizes[other] for other in recent[: at + 1]) <= 300
        moved = memory.run(work(weight(number, sizes[number])), frozenset()).bytes
        assert moved == pytest.approx(0 if held else sizes[number], abs=1e-3)
        if at is not None:
            del recent[at]
        recent.insert(0, number)


def test_a_sweep_hits_as_the_measured_curve_says() -> None:
    a100 = device("A100-SXM-40")
    for share in (0.3, 0.8, 1.2, 3.0):
        each = int(share * a100.onchip_bytes) // 16
        moved = steady(Cache(a100), work(*(weight(i, each) for i in range(16))))
        assert moved / (16 * each) == pytest.approx(1 - a100.hit_rate(16 * each), abs=1e-9)


def test_what_fits_is_fetched_once_and_the_first_run_is_cold() -> None:
    memory = Cache(sharp(100 * KIB))
    run = work(weight(0, 40 * KIB), weight(1, 40 * KIB))
    assert [memory.run(run, frozenset()).bytes for _ in range(3)] == [80 * KIB, 0, 0]


def test_two_partitions_that_take_turns_drive_each_other_out() -> None:
    memory = Cache(sharp(100 * KIB))
    first, second = work(weight(0, 80 * KIB)), work(weight(1, 80 * KIB))
    moved = [memory.run(run, frozenset()).bytes for run in (first, second, first, second, second)]
    assert moved == [80 * KIB] * 4 + [0]


def test_a_value_that_left_is_written_back_and_fetched() -> None:
    made, read = Access(("value", 0), 60 * KIB, AccessKind.WRITE), Access(("value", 0), 60 * KIB, AccessKind.READ)
    between = weight(0, 80 * KIB)
    assert steady(Cache(sharp(100 * KIB)), work(made, between, read)) == (80 + 2 * 60) * KIB
    assert steady(Cache(sharp(200 * KIB)), work(made, between, read)) == 0
    memory, run = Cache(sharp(100 * KIB)), work(made, between, read)
    assert [memory.run(run, frozenset()) for _ in range(2)][-1] == Moved(missed=140 * KIB, written_back=60 * KIB)


def test_a_write_back_comes_in_addition_to_what_is_touched() -> None:
    device = sharp(100 * KIB)
    run = work(
        Access(("value", 0), 60 * KIB, AccessKind.WRITE),
        weight(0, 80 * KIB),
        Access(("value", 0), 60 * KIB, AccessKind.READ),
    )
    missed, written_back = 140 * KIB, 60 * KIB
    found = price(device, run, missed + written_back, Overheads(), written_back)
    assert found.onchip == (run.bytes - missed) / device.onchip_bandwidth == 60 * KIB / device.onchip_bandwidth
    assert found.moved == missed + written_back and found.offchip == found.moved / device.memory_bandwidth


def test_over_a_shared_link_inputs_and_results_pass_by_off_chip_memory() -> None:
    value = [Access(("value", i), KIB, how) for i, how in enumerate((AccessKind.ARRIVE, AccessKind.WRITE))]
    run = work(*value, Access(("value", 1), KIB, AccessKind.LEAVE))
    assert steady(Cache(sharp(100 * KIB)), run) == 2 * KIB
    assert steady(Cache(sharp(100 * KIB), shared=True), run) == 0


def test_what_the_caller_passes_in_is_new_and_what_a_link_brought_is_there() -> None:
    arrives, reads = Access(("value", 0), KIB, AccessKind.ARRIVE), Access(("value", 1), KIB, AccessKind.READ)
    assert steady(Cache(sharp(100 * KIB)), work(arrives)) == KIB
    assert Cache(sharp(100 * KIB)).run(work(reads), frozenset([("value", 1)])).bytes == 0
    assert Cache(sharp(100 * KIB)).run(work(reads), frozenset()).bytes == KIB


def test_a_scratchpad_holds_whole_weights_in_the_order_of_use() -> None:
    edge = device("EdgeTPU")
    run = work(*(weight(i, size << 20) for i, size in enumerate((3, 4, 3, 1))))  # 7.8 MiB: 3 + 4, not 3, not 1
    memory = Scratchpad(edge, [run], activations=0)
    assert memory.run(run, frozenset()).bytes == 11 << 20
    assert memory.run(run, frozenset()).bytes == 4 << 20
    assert isinstance(residency(edge, [run], 0), Scratchpad)


def test_without_memory_behind_it_nothing_may_spill() -> None:
    alone = replace(device("EdgeTPU"), memory_bandwidth=0.0)
    with pytest.raises(PartitionError, match=r"no memory behind its 7\.8 MiB"):
        Scratchpad(alone, [work(weight(0, 9 << 20))], activations=0)
