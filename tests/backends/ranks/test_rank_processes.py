"""``devices="ranks"`` in separate processes gives the right results, reports and errors after a failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from rank_processes import rank_functions
from rank_processes.run_ranks import run_ranks
from zoo import FAMILIES

# Seconds for all of a test; most of it is the start of Python and the compiler.
LONG = 300
# As for one process: see tests/backends/test_families.py.
TOLERANCE = 2e-5


def test_two_ranks_take_turns_follow_sizes_and_keep_states(tmp_path: Path) -> None:
    path = tmp_path / "skips.pt"
    torch.save(rank_functions.Skips().state_dict(), path)
    first, second = run_ranks(rank_functions.together, 2, str(path), timeout=LONG)
    for found in (first, second):
        assert found["turns"]["right"] and found["turns"]["returned"] == [True, True]
        assert found["dynamic"] == {"right": [True, True, True], "graphs": 1}
        assert found["microbatches"] == {"right": [True, True, True], "graphs": 1}
        assert found["states"] == {"right": [True, True, True], "cache": True}
    parts = [found["checkpoint"] for found in (first, second)]
    assert all(part["right"] and 0 < len(part["read"]) < part["weights"] for part in parts)
    assert len({*parts[0]["read"], *parts[1]["read"]}) == parts[0]["weights"] == sum(len(p["read"]) for p in parts)
    assert first["turns"]["report"] == second["turns"]["report"]
    assert "rank 0 has 2 partitions" in first["turns"]["report"]


def test_sends_and_receives_of_a_stage_name_ranks() -> None:
    (found, *_) = run_ranks(rank_functions.skips, 4, "last", {"cache_bytes": "40KiB"}, timeout=LONG)
    assert not any(found["returned"])  # rank 2 has the last stage, and rank 3 none
    first, middle, last = found["stages"]
    assert "send.default(first, 2, 'first')" in first and "send.default(linear_1, 1, 'linear_1')" in first
    received = r"recv\.default\(\[4, 64\], torch\.float32, device\(type ?= ?'cpu'\), 0, 'linear_1'\)"
    assert re.search(received, middle), middle
    assert middle.index("recv.default") < middle.index("torch.relu") < middle.index("send.default")
    assert middle.rindex("linear(") < middle.index("send.default")
    assert last.count("recv.default") == 3 and "send" not in last  # what rank 1 made, the skip, and an input of rank 0


def test_ranks_compare_what_they_were_given() -> None:
    found = run_ranks(rank_functions.refusals, 3, timeout=LONG)
    for said in found:
        assert "options['cache_bytes']: ranks 0, 2: '40KiB'; rank 1: '64KiB'" in said["options"]
        assert "the same contents of the weight layers.0.weight: ranks 0, 2:" in said["contents"]
        assert "the same shape of x: ranks 0, 2: (4, 64)" in said["shape"]
        assert "the same version of torch: ranks 0, 2:" in said["version"] and "rank 1: 1.0" in said["version"]
        assert "requires a gradient" in said["gradients"] and "to_pipeline_stages" in said["gradients"]
    assert "rank 1 did not plan this graph within 10 s" in found[0]["absent"]


def test_a_group_of_ranks_works_without_the_others() -> None:
    alone, *pair = run_ranks(rank_functions.in_a_group, 3, timeout=LONG)
    assert "not a process group of this rank" in alone["said"]
    for found in pair:
        assert found["right"] == [True, True] and found["devices"] == ["rank 0", "rank 1"]
        assert "options['cache_bytes']: rank 0: '20KiB'; rank 1: '40KiB'" in found["said"]


def test_groups_meet_whatever_groups_their_ranks_are_in() -> None:
    assert run_ranks(rank_functions.in_overlapping_groups, 3, timeout=LONG) == [[True, True], [True], [True]]


def test_a_rank_that_dies_while_it_compiles_is_missed() -> None:
    found = run_ranks(rank_functions.faults, 3, "killed while it compiles", timeout=LONG, ok=(0, 2))
    for rank in (0, 2):
        assert "rank 1 did not compile its stages within 10 s" in found[rank]["said"][0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.dynamic])
def test_families_on_two_ranks(name: str) -> None:
    for found in run_ranks(rank_functions.family, 2, name, timeout=800):
        assert found["error"] <= TOLERANCE and found["stages"] == [2]


@pytest.mark.parametrize("how", ["raises", "killed", pytest.param("sleeps", marks=pytest.mark.slow)])
def test_survivors_name_the_rank_that_failed(how: str) -> None:
    found = run_ranks(rank_functions.faults, 3, how, timeout=LONG, ok=(0, 2))
    for rank in (0, 2):
        first, second = found[rank]["said"]
        if how == "raises":
            assert first == "RankError: rank 1 raised in stage 1: ArithmeticError: no luck"
        else:
            assert first.startswith("RankError: rank 1 (stage 1 (hidden .. layers.3)) is lost")
        assert second.startswith("RankError: the team of ranks has ended, as rank 1")
        assert (
            found[rank]["seconds"] < rank_functions.PATIENT
        )  # less than a rank sleeps; the ranks' timeout is 10 seconds
        assert not found[rank]["kept"]  # no socket; the runtime makes no shared memory


def test_a_forked_child_is_refused_and_its_end_leaves_the_ranks_connected() -> None:
    first, second = run_ranks(rank_functions.forked, 2, timeout=LONG)
    assert (first["received"], second["received"]) == ([10, 11], [0, 1])
    for text in [*first["refusals"], *second["refusals"]]:
        assert "the team of ranks was made in process" in text
