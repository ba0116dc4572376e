import os
from pathlib import Path

import pytest

from fx_partition.hardware.cores import allowed_cores, core_groups, format_group, parse_group


def _machine(root: Path, caches: dict[int, list[str]], cores: int) -> Path:
    """A sysfs with ``caches[level]``: which cores share each cache of that level."""
    for core in range(cores):
        for index, (level, groups) in enumerate(caches.items()):
            folder = root / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "type").write_text("Unified\n")
            mine = next(g for g in groups if core in parse_any(g))
            (folder / "shared_cpu_list").write_text(f"{mine}\n")
    return root


def parse_any(text: str) -> set[int]:
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_domains_of_the_outermost_cache_that_is_not_common(tmp_path, eight_cores):
    root = _machine(tmp_path, {2: [str(i) for i in range(8)], 3: ["0-3", "4-7"]}, 8)
    assert core_groups(root) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_one_common_cache_leaves_the_private_ones(tmp_path, eight_cores):
    root = _machine(tmp_path, {2: ["0,4", "1,5", "2,6", "3,7"], 3: ["0-7"]}, 8)
    assert core_groups(root) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_cores_that_the_process_may_not_use_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 5})
    root = _machine(tmp_path, {3: ["0-3", "4-7"]}, 8)
    assert core_groups(root) == [(1, 2), (5,)]


def test_one_group_where_nothing_is_known(tmp_path, eight_cores):
    assert core_groups(tmp_path) == [tuple(range(8))]


def test_a_group_is_written_and_read_as_taskset_does(eight_cores):
    assert parse_group("cores:0-2,5") == (0, 1, 2, 5)
    assert format_group((0, 1, 2, 5)) == "cores:0-2,5"


@pytest.mark.parametrize("name", ["cores:", "cores:a", "cores:3-1", "cores:0-", "cpu:0"])
def test_what_is_not_a_group_is_refused(name, eight_cores):
    with pytest.raises(ValueError, match="cores"):
        parse_group(name)


def test_a_core_that_is_not_there_is_named(eight_cores):
    with pytest.raises(ValueError, match="core 9"):
        parse_group("cores:7,9")


def test_this_machine_has_groups_of_its_allowed_cores():
    assert sorted(core for group in core_groups() for core in group) == list(allowed_cores())
