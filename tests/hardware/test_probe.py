"""Fits of made-up sweeps are right, and sweeps of this machine are complete and kept; their speed is not judged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fx_partition
from fx_partition.cli import main
from fx_partition.hardware import bandwidth_sweep as sweeping
from fx_partition.hardware import detect as detection
from fx_partition.hardware import fit_hit_curve as fitting
from fx_partition.hardware import probe as probing
from fx_partition.hardware.bandwidth_sweep import save, saved, sweep, working_sets
from fx_partition.hardware.cpu_info import Cache, CpuFacts
from fx_partition.hardware.fit_hit_curve import falling, fit, smoothed
from fx_partition.hardware.hit_curves import rate_at

MIB = 2**20
FACTS = CpuFacts("A CPU", (Cache(2, MIB, 1, 1, False), Cache(3, 32 * MIB, 4, 4, True)), 4.0, 2e9, 2**34, "a test")


def _rate(size: float, l2: float = 0.75 * MIB, l3: float = 20 * MIB) -> float:
    """Of a machine that reads its L2 at 90, its L3 at 30 and its memory at 10 GB/s, each by the part that fits."""
    in_l2, in_l3 = min(size, l2), max(0.0, min(size, l3) - l2)
    return 1e9 * size / (in_l2 / 90 + in_l3 / 30 + max(0.0, size - l3) / 10) if size > l2 else 90e9


POINTS = [(float(size), _rate(size)) for size in working_sets(FACTS)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FX_PARTITION_CACHE_DIR", str(tmp_path / "cache"))


def test_working_sets_reach_around_every_cache() -> None:
    sizes = working_sets(FACTS)
    assert sizes[0] == MIB // 8 and sizes[-1] == 128 * MIB and sizes == sorted(set(sizes))
    assert all(size % 4096 == 0 for size in sizes)
    small = CpuFacts("", FACTS.caches, 1.0, 0.0, 64 * MIB, "a test")
    assert working_sets(small)[-1] == 16 * MIB


def test_the_fit_finds_what_the_machine_was_made_of() -> None:
    figures, curve = fit(POINTS, MIB, cores=1)
    assert figures["onchip_bandwidth"].value == pytest.approx(90e9, rel=0.05)
    assert figures["memory_bandwidth"].value == pytest.approx(33e9, rel=0.15)  # the L3, and a little of the L2
    assert figures["usable_bytes"].value == pytest.approx(0.75 * MIB, rel=0.1)
    assert curve is not None and {figure.confidence for figure in figures.values()} == {"measured"}
    figures, _ = fit(POINTS, 32 * MIB, cores=4)
    assert figures["onchip_bandwidth"].value == pytest.approx(4 * 31e9, rel=0.1)
    assert figures["usable_bytes"].value == pytest.approx(20 * MIB, rel=0.1)
    assert figures["onchip_bandwidth"].confidence == "inferred" and "times 4" in figures["onchip_bandwidth"].source


def test_the_fit_bears_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 1 + 0.1 * torch.randn(len(POINTS), generator=generator).clamp(-2, 2)
    noisy = [(size, rate * float(factor)) for (size, rate), factor in zip(POINTS, noise, strict=True)]
    for nominal, usable in ((MIB, 0.75 * MIB), (32 * MIB, 20 * MIB)):
        assert fit(noisy, nominal, 1)[0]["usable_bytes"].value == pytest.approx(usable, rel=0.3)


def test_a_cache_no_faster_than_what_lies_beyond_shows_no_knee() -> None:
    figures, curve = fit([(size, 30e9) for size, _ in POINTS], MIB, cores=1)
    assert curve is None and set(figures) == {"onchip_bandwidth", "memory_bandwidth"}


def test_a_sweep_that_does_not_reach_beyond_says_nothing() -> None:
    assert fit([point for point in POINTS if point[0] <= MIB], MIB, cores=1) == ({}, None)
    assert fit([], MIB, cores=1) == ({}, None)


def test_smoothing_adds_times_of_neighbours() -> None:
    # Reading one half at 10 and the other at 30 takes as long as all at 15.
    assert smoothed([(100.0, 10.0), (120.0, 30.0), (200.0, 5.0)]) == [(100.0, 15.0), (120.0, 15.0), (200.0, 5.0)]


def test_a_flat_stretch_where_hits_are_lost_moves_the_knee_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hits fall through 0.93 from 11 to 15 MiB, by one in a hundred only; noise is 1.5% either way."""
    hits = ((0.0, 1.0), (8 * MIB, 1.0), (11 * MIB, 0.935), (15 * MIB, 0.925), (64 * MIB, 0.0), (128 * MIB, 0.0))

    def spread() -> float:
        knees = []
        for factor in (0.985, 1.0, 1.015):
            rates = {size: 1 / (rate_at(hits, size) / 90e9 + (1 - rate_at(hits, size)) / 25e9) for size, _ in POINTS}
            points = [(size, rate * (factor if size > 8 * MIB else 1)) for size, rate in rates.items()]
            knees.append(fit(points, 32 * MIB, 1)[0]["usable_bytes"].value)
        return max(knees) / min(knees) - 1

    assert spread() < 0.2
    monkeypatch.setattr(fitting, "_NEAR", 1.0001)  # of each size its own rate alone
    assert spread() > 0.3


def test_falling_keeps_what_falls_and_the_sum() -> None:
    assert falling(POINTS) == POINTS
    rates = [9.0, 3.0, 4.0, 8.0, 1.0, 2.0]
    fitted = [rate for _, rate in falling([(float(i), rate) for i, rate in enumerate(rates)])]
    assert fitted == sorted(fitted, reverse=True) and sum(fitted) == pytest.approx(sum(rates))


def test_a_kept_sweep_is_found_by_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "cpu_facts", lambda: FACTS)
    before = {d.name: d for d in detection.detect()}["cpu:L3"]
    assert before.figures["usable_bytes"].confidence == "inferred"
    save(FACTS, POINTS)
    after = {d.name: d for d in detection.detect()}["cpu:L3"]
    assert after.figures["usable_bytes"].confidence == "measured"
    assert after.usable_bytes == pytest.approx(20 * MIB, rel=0.1) and after.hit_rate(after.usable_bytes) >= 0.92
    assert after.hit_rate(100 * MIB) < 0.2


@pytest.mark.parametrize("text", ["", "{}", '{"points": [[1]]}', '{"points": 3}', "[]"])
def test_a_damaged_file_is_none(text: str) -> None:
    path = save(FACTS, POINTS)
    assert saved(FACTS) == POINTS
    path.write_text(text)
    assert saved(FACTS) == []
    assert list(path.parent.iterdir()) == [path]


def test_another_machines_sweep_is_not_taken() -> None:
    save(FACTS, POINTS)
    assert saved(CpuFacts("Another", FACTS.caches, 4.0, 2e9, 2**34, "a test")) == []


def test_a_process_that_may_use_fewer_cores_finds_the_sweep() -> None:
    save(FACTS, POINTS)
    level2, level3 = FACTS.caches
    fewer = replace(FACTS, caches=(replace(level2, common=True), replace(level3, cores=1)), cores=1.0)
    assert saved(fewer) == POINTS
    assert saved(replace(FACTS, caches=(level2, replace(level3, sharers=8)))) == []


def test_a_sweep_measures_every_size_and_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    points = sweep([2**14, 2**16, 2**20], seconds=0.0)
    assert [size for size, _ in points] == [2**14, 2**16, 2**20] and all(rate > 0 for _, rate in points)
    assert torch.get_num_threads() == threads


def test_rounds_that_are_disturbed_do_not_count_nor_does_one_that_is_lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([10.0, 4.0, 10.0, 5.0, 10.0, 6.0, 90.0, 10.0])
    monkeypatch.setattr(sweeping, "_LEAST_ROUNDS", 8)
    monkeypatch.setattr(sweeping, "_rate", lambda numbers: next(rounds))
    assert sweep([4096], seconds=0.0) == [(4096.0, 10.0)]


def test_each_round_reads_another_part_of_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, set[int]] = {2**16: set(), 2**20: set()}

    def rate(numbers: torch.Tensor) -> float:
        seen[numbers.nbytes].add(numbers.storage_offset())
        return 1.0

    monkeypatch.setattr(sweeping, "_rate", rate)
    sweep(list(seen), seconds=0.0)
    assert len(seen[2**16]) == 3 and seen[2**20] == {0}
    assert all(offset % 1024 == 0 and offset + 2**14 <= 2**18 for offset in seen[2**16])


def test_probe_and_its_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(probing, "cpu_facts", lambda: FACTS)
    monkeypatch.setattr(probing, "sweep", lambda sizes, seconds: [(float(size), _rate(size)) for size in sizes])
    found = fx_partition.probe()
    assert found.points == POINTS and json.loads(found.path.read_text())["cpu"] == "A CPU"
    assert [d.name for d in found.devices] == ["cpu:L2", "cpu:L3"]
    assert main(["probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == [list(point) for point in POINTS]
    assert main(["probe"]) == 0
    text = capsys.readouterr().out
    assert text.index("cpu:L3: 18.55 MiB usable") < text.index("cpu:L3: 32 MiB nominal") and text.count("*") > 60


def test_what_cannot_be_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"device=.cpu., not 'cuda:0'"):
        fx_partition.probe("cuda:0")
    monkeypatch.setattr(probing, "cpu_facts", lambda: CpuFacts("", (), 1.0, 0.0, None, "a test"))
    with pytest.raises(ValueError, match="caches"):
        fx_partition.probe()


@pytest.mark.slow
def test_this_machine_is_probed_within_its_time() -> None:
    found = fx_partition.probe(seconds=5)
    assert len(found.points) > 20 and os.path.exists(found.path)
    assert {d.name for d in found.devices} <= {d.name for d in fx_partition.detect()}
