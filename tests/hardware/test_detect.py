"""The devices of a machine are detected, from fakes of drivers and systems and on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fx_partition.hardware import detect as detection
from fx_partition.hardware.cores import allowed_cores
from fx_partition.hardware.cpu_info import Cache, CpuFacts
from fx_partition.hardware.gpus import find_gpus, gpu_device
from fx_partition.hardware.linux import cpu_quota, linux_cpu
from fx_partition.hardware.macos_windows import macos_cpu, unknown_cpu, windows_cpu
from fx_partition.hardware.records import device

MIB = 2**20


def _gpu(name: str, l2: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, L2_cache_size=l2, total_memory=80 * 10**9, multi_processor_count=132, **more)


def test_gpus_are_named_as_torch_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [_gpu("NVIDIA H100 80GB HBM3", 50 * MIB), _gpu("NVIDIA L4", 48 * MIB)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    first, second = find_gpus()
    assert (first.name, second.name) == ("cuda:0", "cuda:1")
    assert first.usable_bytes == device("H100-SXM").usable_bytes and first.hit_curve == device("H100-SXM").hit_curve
    assert first.aliases == ("NVIDIA H100 80GB HBM3", "H100-SXM") and second.aliases[1] == "L4"
    assert [found.name for found in detection.detect()][:3] == ["cuda:0", "cuda:1", "cpu:L2"]


def test_no_gpu_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_gpus() == []


def test_a_slice_of_a_gpu_has_its_share() -> None:
    whole = device("A100-SXM-40")
    found = gpu_device(0, _gpu("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20 * MIB))
    assert found.onchip_bytes == 20 * MIB and found.usable_bytes == whole.usable_bytes // 2
    assert found.memory_bandwidth == whole.memory_bandwidth / 2
    assert found.memory_bytes == found.figures["memory_bytes"].value == 80 * 10**9
    assert found.figures["memory_bytes"].source == "the driver"
    assert found.figures["usable_bytes"].confidence == "inferred"
    assert whole.figures["usable_bytes"].confidence == "measured"


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 NVL"])
def test_a_name_that_only_starts_like_a_record_is_none(name: str) -> None:
    found = gpu_device(1, _gpu(name, 32 * MIB, memory_clock_rate=9_000_000, memory_bus_width=192))
    assert found.name == "cuda:1" and found.aliases == (name,)
    assert found.onchip_bytes == 32 * MIB and found.usable_bytes == int(0.7 * 32 * MIB)
    assert found.memory_bandwidth == 2 * 9e9 * 24
    assert found.figures["onchip_bytes"].confidence == "datasheet"
    assert found.figures["onchip_bandwidth"].confidence == "estimate"


def test_a_driver_that_says_little() -> None:
    found = gpu_device(0, SimpleNamespace(name="GPU", total_memory=1, multi_processor_count=10))
    assert found.onchip_bytes == 4 * MIB and found.figures["onchip_bytes"].confidence == "estimate"


def test_rocm_is_matched_by_name_and_by_architecture() -> None:
    """ROCm reports the L2 of one die (4 MiB); the record is of the cache that all share."""
    named = gpu_device(0, _gpu("AMD Instinct MI325X", 4 * MIB, gcnArchName="gfx942:sramecc+:xnack-"))
    assert named.aliases[1] == "MI325X" and named.onchip_bytes == 256 * MIB
    by_architecture = gpu_device(0, _gpu("AMD Radeon Graphics", 4 * MIB, gcnArchName="gfx90a:sramecc+:xnack-"))
    assert by_architecture.aliases == ("AMD Radeon Graphics", "MI250X-perGCD")
    other = gpu_device(0, _gpu("AMD Radeon RX 7900 XTX", 6 * MIB, gcnArchName="gfx1100"))
    assert other.onchip_bytes == 6 * MIB and other.aliases == ("AMD Radeon RX 7900 XTX",)


def _linux(root: Path, caches: dict[int, tuple[str, list[str]]], cores: int, info: str = "") -> CpuFacts:
    """A machine with ``caches[level] = (size, which cores share each)``, read as Linux's."""
    for core in range(cores):
        for index, (level, (size, groups)) in enumerate(caches.items()):
            folder = root / "cpu" / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            mine = next(g for g in groups if int(g.split("-")[0]) <= core <= int(g.split("-")[-1]))
            for name, text in {"level": level, "type": "Unified", "size": size, "shared_cpu_list": mine}.items():
                (folder / name).write_text(f"{text}\n")
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(info)
    (root / "proc" / "meminfo").write_text("MemTotal:       16 kB\n")
    return linux_cpu(root / "cpu", root / "proc", root / "cgroup")


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


ONE_L3 = {2: ("1024K", [str(i) for i in range(8)]), 3: ("32M", ["0-7"])}
TWO_L3 = {2: ("1024K", [str(i) for i in range(8)]), 3: ("32M", ["0-3", "4-7"])}


@pytest.mark.usefixtures("eight_cores")
def test_one_l3_for_all_leaves_a_stage_the_l2(tmp_path: Path) -> None:
    facts = _linux(tmp_path, ONE_L3, 8, "model name\t: Some CPU\ncpu MHz\t\t: 2000.0\n")
    assert (facts.name, facts.hertz, facts.cores, facts.memory_bytes) == ("Some CPU", 2e9, 8.0, 16 * 1024)
    level2, level3 = detection.cpu_devices(facts)
    assert (level2.name, level2.onchip_bytes, level2.usable_bytes) == ("cpu:L2", MIB, int(0.6 * MIB))
    assert (level3.name, level3.onchip_bytes, level3.usable_bytes) == ("cpu:L3", 32 * MIB, int(0.6 * 32 * MIB))
    # Beyond the L2 of one core lies its part of the L3.
    assert level2.memory_bandwidth == level3.onchip_bandwidth / 8 == 10 * 2e9


@pytest.mark.usefixtures("eight_cores")
def test_of_several_l3_a_stage_has_one(tmp_path: Path) -> None:
    level3, _ = detection.cpu_devices(_linux(tmp_path, TWO_L3, 8))
    assert level3.name == "cpu:L3" and level3.usable_bytes == int(0.6 * 32 * MIB)
    assert level3.peak_flops == 4 * detection.cpu_devices(_facts(cores=1))[0].peak_flops


def _facts(cores: float) -> CpuFacts:
    return CpuFacts("", (Cache(2, MIB, 1, 1, False),), cores, 0.0, None, "a test")


def test_who_may_use_half_of_the_cores_has_half_of_their_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5}, raising=False)
    facts = _linux(tmp_path, TWO_L3, 8)
    assert facts.cores == 2 and facts.caches[1] == Cache(3, 32 * MIB, sharers=4, cores=2, common=True)
    level3 = detection.cpu_devices(facts)[1]
    assert level3.usable_bytes == int(0.6 * 16 * MIB) and level3.onchip_bytes == 32 * MIB


THREADS = {2: ("1024K", ["0-1", "2-3", "4-5", "6-7"]), 3: ("32M", ["0-7"])}


@pytest.mark.parametrize(
    ("allowed", "caches", "first", "usable"),
    [
        ({4}, ONE_L3, "cpu:L2", 0.6 * MIB),  # all of its L2, an eighth of the L3
        ({4}, THREADS, "cpu:L2", 0.6 * MIB / 2),  # one of the two threads of a core
        ({4, 5}, THREADS, "cpu:L2", 0.6 * MIB),  # a core
        ({4, 5, 6}, THREADS, "cpu:L2", 0.6 * MIB / 2),  # cores that share no L2: the one of which half is granted
        ({0, 4}, TWO_L3, "cpu:L3", 0.6 * 32 * MIB / 4),  # stages on two L3
        (set(range(8)), {3: ("32M", ["0-7"])}, "cpu:L3", 0.6 * 32 * MIB),
    ],
)
def test_what_comes_first_where_few_cores_may_be_used(
    allowed: set[int], caches: dict[int, tuple[str, list[str]]], first: str, usable: float,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed, raising=False)
    found = detection.cpu_devices(_linux(tmp_path, caches, 8))
    assert (found[0].name, found[0].usable_bytes) == (first, int(usable))


def test_a_core_that_has_all_caches_alone_has_the_outermost_first() -> None:
    alone = CpuFacts("", (Cache(2, MIB, 1, 1, True), Cache(3, 32 * MIB, 1, 1, True)), 1.0, 0.0, None, "a test")
    assert [found.name for found in detection.cpu_devices(alone)] == ["cpu:L3", "cpu:L2"]


@pytest.mark.usefixtures("eight_cores")
def test_the_highest_clock_is_preferred_to_that_of_the_moment(tmp_path: Path) -> None:
    facts = _linux(tmp_path, ONE_L3, 8, "cpu MHz\t\t: 1200.0\n")
    source = detection.cpu_devices(facts)[0].figures["peak_flops"].source
    assert facts.hertz == 1.2e9 and "1.20 GHz" in source and "estimate" in source
    (tmp_path / "cpu" / "cpu0" / "cpufreq").mkdir()
    (tmp_path / "cpu" / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("3700000\n")
    facts = linux_cpu(tmp_path / "cpu", tmp_path / "proc", tmp_path / "cgroup")
    source = detection.cpu_devices(facts)[0].figures["peak_flops"].source
    assert facts.hertz == 3.7e9 and "3.70 GHz, the core's highest" in source
    assert "2.50 GHz, assumed" in detection.cpu_devices(_facts(cores=1))[0].figures["peak_flops"].source


@pytest.mark.usefixtures("eight_cores")
def test_a_cgroups_limit_is_that_of_the_tightest_group_around(tmp_path: Path) -> None:
    _linux(tmp_path, ONE_L3, 8)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    inner = tmp_path / "cgroup" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path / "proc", tmp_path / "cgroup") == float("inf")
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path / "proc", tmp_path / "cgroup") == 1.5
    facts = linux_cpu(tmp_path / "cpu", tmp_path / "proc", tmp_path / "cgroup")
    assert facts.cores == 1.5
    # One core of the L2 may be used whole, of the eight around the L3 one and a half.
    level2, level3 = detection.cpu_devices(facts)
    assert level3.peak_flops == 1.5 * level2.peak_flops


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("5:devices:/\n3:cpu,cpuacct:/docker/abc\n")
    group = tmp_path / "cgroup" / "cpu"
    group.mkdir(parents=True)
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota(tmp_path / "proc", tmp_path / "cgroup") == float("inf")
    (group / "cpu.cfs_quota_us").write_text("300000\n")
    assert cpu_quota(tmp_path / "proc", tmp_path / "cgroup") == 3


@pytest.mark.usefixtures("eight_cores")
def test_a_linux_that_says_nothing(tmp_path: Path) -> None:
    facts = linux_cpu(tmp_path, tmp_path, tmp_path)
    assert facts.caches == () and facts.memory_bytes is None
    (only,) = detection.cpu_devices(facts)
    assert only.name == "cpu:L2" and only.figures["onchip_bytes"].confidence == "estimate"


def _prints(monkeypatch: pytest.MonkeyPatch, program: str, text: str) -> None:
    def run(command: list[str], **options: Any) -> SimpleNamespace:
        assert command[0] == program and options["timeout"] <= 30
        return SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", run)


SYSCTL = """machdep.cpu.brand_string: Apple M1 Max
hw.ncpu: 10
hw.memsize: 34359738368
hw.l2cachesize: 4194304
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 4
"""


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    _prints(monkeypatch, "sysctl", SYSCTL)
    facts = macos_cpu()
    assert facts.caches == (Cache(2, 12 * MIB, 4, 4, False),) and facts.memory_bytes == 2**35 and facts.cores == 10
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = detection.detect()
    assert [d.name for d in found if not d.name.startswith("cuda")] == ["mps", "cpu:L2"]
    mps = next(d for d in found if d.name == "mps")
    assert mps.usable_bytes == device("M1Max").usable_bytes and mps.aliases == ("Apple M1 Max", "M1Max")


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "Name": "Some CPU  ", "NumberOfCores": 8, "NumberOfLogicalProcessors": 16, "MaxClockSpeed": 3600,
        "L2CacheSize": 8192, "L3CacheSize": 32768,
    }  # fmt: skip
    _prints(monkeypatch, "powershell", json.dumps([said, said]))
    facts = windows_cpu()
    assert facts.caches == (Cache(2, MIB, 2, 2, False), Cache(3, 32 * MIB, 16, 16, True))
    assert (facts.name, facts.hertz, facts.cores) == ("Some CPU", 3.6e9, 16)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "3", "{}"])
def test_a_windows_that_says_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    _prints(monkeypatch, "powershell", text)
    assert windows_cpu().caches == ()


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("sysctl", 20)])
def test_a_command_that_is_missing_or_hangs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert macos_cpu().caches == () and windows_cpu().caches == ()


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    assert unknown_cpu().cores >= 1
    assert detection.detect()[-1].figures["onchip_bytes"].confidence == "estimate"


def test_this_machine() -> None:
    found = detection.detect()
    assert found and len({d.name for d in found}) == len(found)
    assert all(0 < d.usable_bytes <= d.onchip_bytes for d in found)
    if sys.platform == "linux":
        assert linux_cpu().cores <= len(allowed_cores())
