"""The event threads of a team's connections let the threads that compute go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from rank_processes.rank_functions import on_ranks
from rank_processes.run_ranks import run_ranks
from torch import nn


def policies() -> dict[int, int]:
    """The scheduling policy of each event thread of gloo."""
    threads = Path("/proc/self/task").iterdir()
    loops = [int(t.name) for t in threads if (t / "comm").read_text().strip() == "gloo_tcp_loop"]
    return {thread: os.sched_getscheduler(thread) for thread in loops}


def before_and_after(rank: int, world_size: int) -> tuple[int, list[int], list[int]]:
    """The process's own policy, those of the default group's threads, and of those that came with a compiled call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    own = set(policies())
    with torch.no_grad():
        on_ranks(model, cache_bytes=400)(torch.ones(2, 8))
    after = policies()
    return os.sched_getscheduler(0), [after[t] for t in own], [after[t] for t in after.keys() - own]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no policy that does not preempt")
def test_threads_of_a_team_do_not_preempt_and_others_stay_as_they_were() -> None:
    for own, default, team in run_ranks(before_and_after, 2):
        assert default and set(default) == {own}
        assert len(team) == 2 and set(team) == {os.SCHED_BATCH}
