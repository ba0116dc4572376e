"""The helper that runs ranks: it returns what they return, and no rank outlives a failure."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes.run_ranks import RankError, run_ranks


def add(rank: int, world_size: int, number: int) -> dict[str, Any]:
    total = torch.tensor(float(rank + number))
    dist.all_reduce(total)
    return {"total": total, "size": world_size, "pid": os.getpid()}


def fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("no such thing")
    dist.barrier()  # rank 1 never comes


def sleep(rank: int, world_size: int) -> None:
    print(f"rank {rank} lies down", flush=True)
    time.sleep(600)


def test_each_rank_returns_its_result() -> None:
    found = run_ranks(add, 2, 10)
    assert [result["total"].item() for result in found] == [21.0, 21.0]
    assert [result["size"] for result in found] == [2, 2]
    assert len({result["pid"] for result in found} | {os.getpid()}) == 3


def test_a_failure_ends_all_and_shows_each_rank() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 ended with 1.*--- rank 0.*--- rank 1.*ValueError: no such thing"):
        run_ranks("rank_processes.test_run_ranks:fail_on_one", 2)


def test_what_does_not_end_is_killed() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 0, 1 did not end within 0.5 s"):
        run_ranks(sleep, 2, timeout=0.5, backend=None)
