"""`keep_buffers` lets freed memory serve again without new page faults, and can be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CHILD = """
import os, resource, sys, torch
from fx_partition import keep_buffers
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.empty(8 << 20, dtype=torch.uint8).fill_(1) for _ in range(6)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
applied = False
for word in sys.argv[1].split():
    applied = keep_buffers(word == "keep")
before = resident()
first = faults()
print(applied, first, faults(), resident() - before)
"""


def child(word: str, **environment: str) -> tuple[bool, int, int, int]:
    """Call `keep_buffers` for each word, "keep" or "return", and allocate 48 MiB twenty times.

    Returns:
        What the last call of `keep_buffers` returned; page faults of the first and of the second ten times; the
        resident bytes that stay.
    """
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "LD_PRELOAD"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, word], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    applied, *figures = run.stdout.split()
    first, further, stay = map(int, figures)
    return applied == "True", first, further, stay


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_page_faults_of_repeated_buffers_fall_and_the_memory_stays() -> None:
    # Left alone, the threshold grows by what happens to be freed first: it is held where it starts.
    _, first, without, returned = child("", MALLOC_MMAP_THRESHOLD_="131072")
    applied, _, kept, stay = child("keep")
    assert applied
    assert returned < 24 << 20 < 40 << 20 < stay, (returned, stay)  # of 48 MiB
    if first:  # a sandboxed kernel may count none
        assert kept < without / 10, (kept, without)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_returned_again_when_the_user_says_so() -> None:
    applied, _, _, stay = child("keep return")
    assert applied
    assert stay < 24 << 20, stay  # of 48 MiB


def test_the_users_own_thresholds_are_left_alone() -> None:
    applied, *_ = child("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not applied
