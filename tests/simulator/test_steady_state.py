"""Memory that looks up recurring runs gives the same figures as following every run, and follows few."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fx_partition.hardware.records import device
from fx_partition.passes.timing.partition_work import Access, AccessKind, Key, PartitionWork
from fx_partition.simulator.cache_model import Cache, Moved, Residency, Scratchpad
from fx_partition.simulator.steady_state import Recurrent


class Counted(Cache):
    """Counts the runs that are followed."""

    followed = 0

    def run(self, work: PartitionWork, hopped: frozenset[Key]) -> Moved:
        self.followed += 1
        return super().run(work, hopped)


def works(pick: random.Random) -> list[PartitionWork]:
    """Partitions that read weights and values of each other's, and write."""
    found = []
    for _ in range(3):
        accesses = [Access(("weight", pick.randrange(9)), pick.randint(1, 40), AccessKind.WEIGHT) for _ in range(6)]
        accesses += [
            Access(
                ("value", pick.randrange(6)),
                pick.randint(1, 40),
                pick.choice([AccessKind.READ, AccessKind.WRITE, AccessKind.LEAVE]),
            )
            for _ in range(6)
        ]
        pick.shuffle(accesses)
        found.append(PartitionWork(tuple(accesses), frozenset([("value", pick.randrange(6))]), 0, 1, 1))
    return found


def memories(kind: str, of: Sequence[PartitionWork]) -> list[Residency]:
    cache = replace(device("A100-SXM-40"), onchip_bytes=300, usable_bytes=300)
    pad = replace(device("EdgeTPU"), onchip_bytes=120, usable_bytes=120)
    return [Cache(cache), Cache(cache)] if kind == "cache" else [Scratchpad(pad, of, 40), Scratchpad(pad, of, 40)]


@pytest.mark.parametrize("kind", ["cache", "scratchpad"])
@pytest.mark.parametrize("seed", range(10))
def test_it_moves_what_the_memory_itself_would(kind: str, seed: int) -> None:
    pick = random.Random(seed)
    of = works(pick)
    plain, memory = memories(kind, of)
    recurrent = Recurrent(memory, of, [work.received for work in of])
    # In any order, so that states are left by several ways and the memory has to go back to them.
    for partition in pick.choices(range(3), k=300):
        assert recurrent.run(partition) == plain.run(of[partition], of[partition].received)


def test_of_a_stream_only_the_first_requests_are_followed() -> None:
    pick = random.Random(0)
    of = works(pick)
    memory = Counted(replace(device("A100-SXM-40"), onchip_bytes=300, usable_bytes=300))
    recurrent = Recurrent(memory, of, [work.received for work in of])
    first = [recurrent.run(i % 3) for i in range(9)]
    followed = memory.followed
    assert [recurrent.run(i % 3) for i in range(3000)][-3:] == first[-3:]
    assert memory.followed == followed <= 9
