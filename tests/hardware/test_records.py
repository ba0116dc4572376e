"""Every figure of a device record has a source, and derived figures agree with the measurements."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import pairwise

import pytest

import fx_partition
from fx_partition.hardware.hit_curves import (
    USABLE_HIT_RATE,
    curve_from_bandwidth,
    curve_from_rule,
    rate_at,
    scaled,
    share_at,
    usable_share,
)
from fx_partition.hardware.records import Device, Figure, device, devices, normalise

MIB = 2**20


@pytest.mark.parametrize("record", devices(), ids=lambda record: record.name)
def test_a_record_is_whole(record: Device) -> None:
    assert record.kind in ("gpu", "cpu", "accelerator")
    assert 0 < record.usable_bytes <= record.onchip_bytes
    assert record.onchip_bandwidth > record.memory_bandwidth >= 0 and record.peak_flops > 0 and record.link_latency > 0
    assert record.persist_bytes is None or record.persist_bytes < record.onchip_bytes
    for figure in record.figures.values():
        assert len(figure.source) > 4 and figure.value >= 0
    for name in ("onchip_bytes", "usable_bytes", "memory_bandwidth", "peak_flops", "link_latency"):
        assert record.figures[name].value == pytest.approx(getattr(record, name), abs=1)


@pytest.mark.parametrize("record", devices(), ids=lambda record: record.name)
def test_a_hit_curve_never_rises_and_promises_no_more_than_fits(record: Device) -> None:
    assert all(low < high for (low, _), (high, _) in pairwise(record.hit_curve))
    assert all(above >= below for (_, above), (_, below) in pairwise(record.hit_curve))
    assert record.hit_curve[0] == (0.0, 1.0)
    assert all(0 <= rate <= min(1, 1 / share) for share, rate in record.hit_curve[1:])
    assert record.hit_rate(record.usable_bytes) >= USABLE_HIT_RATE - 0.01
    assert record.half_bytes is not None and record.hit_rate(record.half_bytes) == pytest.approx(0.5, abs=1e-3)


def test_names_are_found_however_they_are_spelled_and_no_two_devices_share_one() -> None:
    names = [(normalise(name), record.name) for record in devices() for name in (record.name, *record.aliases)]
    assert len({spelled for spelled, _ in names}) == len(names)
    for spelled, name in names:
        assert device(spelled).name == name
    assert device("h100 sxm") is device("H100_SXM") is device("NVIDIA H100 80GB HBM3")


def test_a_name_that_is_not_known_lists_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'H100-SMX'; close: H100-SXM"):
        device("H100-SMX")
    with pytest.raises(ValueError, match="fx-partition devices"):
        device("abacus")


def test_a_confidence_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'datashet'.*measured, datasheet, inferred, estimate"):
        Figure(1.0, "a test", "datashet")


def test_no_name_can_be_read_as_a_size() -> None:
    for record in devices():
        for name in (record.name, *record.aliases):
            assert name[0].isalpha() and "," not in name and not re.fullmatch(r"[\d.]*\s*[kmgt]?i?b", name.lower())


def test_measured_usable_bytes_are_where_the_curves_bend() -> None:
    """The stored figures were read off the curves by eye; the rule of `hit_curves` finds the same."""
    curves = json.loads(files("fx_partition.hardware").joinpath("data/l2_curves.json").read_text())
    for name, curve in {"A100-SXM-80": "a100_80", "H100-PCIe": "h100_pcie", "H200": "h200", "L40S": "l40"}.items():
        found = usable_share(curve_from_bandwidth(curves[curve]["points"], curves[curve]["nominal_MiB"]))
        assert found * device(name).onchip_bytes == pytest.approx(device(name).usable_bytes)


def test_usable_bytes_without_a_measurement_are_marked() -> None:
    for name, mib in {"H100-SXM": 36, "V100": 0.6875 * 6, "L4": 89.5 / 2, "MI300X": 0.7 * 256, "TPUv5e": 128}.items():
        assert device(name).usable_bytes == pytest.approx(mib * MIB, abs=1)
        assert device(name).figures["usable_bytes"].confidence == "inferred"
    assert device("H200").figures["usable_bytes"].confidence == "measured"


def test_figures_carry_over_in_bytes_and_seconds() -> None:
    h200 = device("H200")
    assert (h200.onchip_bytes, h200.usable_bytes, h200.persist_bytes) == (60 * MIB, 43 * MIB, 37.5 * MIB)
    assert (h200.memory_bytes, h200.memory_bandwidth, h200.peak_flops) == (141 * 10**9, 3.89e12, 989e12)
    assert h200.link_latency == pytest.approx(2.5e-6)
    assert h200.figures["memory_bandwidth.datasheet"].value == 4.8e12
    assert device("GroqLPU1").memory_bandwidth == 0 and device("GroqLPU1").memory_bytes is None
    assert device("EdgeTPU").peak_dtype == "int8"


def test_an_edge_tpu_reads_what_does_not_fit_again_and_again() -> None:
    edge = device("EdgeTPU")
    assert edge.hit_rate(edge.usable_bytes) == 1
    assert edge.hit_rate(1.5 * edge.usable_bytes) == pytest.approx(1 / 1.5)


def test_the_hit_rate_of_a_sweep_follows_from_the_time_it_takes() -> None:
    """A cache of 10 that reads at 1000, memory at 100; a sweep that hits to one half takes 0.5/1000 + 0.5/100."""
    half = 1 / (0.5 / 1000 + 0.5 / 100)
    curve = curve_from_bandwidth([(0.5, 10), (2, 1000), (5, 1000), (12, half), (40, 100), (80, 100)], 10)
    assert curve == ((0.0, 1.0), (0.2, 1.0), (0.5, 1.0), (1.2, pytest.approx(0.5)), (4.0, 0.0))
    assert usable_share(curve) == 0.5 and share_at(curve, 0.5) == pytest.approx(1.2)
    assert rate_at(curve, 0.85) == pytest.approx(0.75) and rate_at(curve, 100) == 0
    # Faster beyond its size than a cache can be: something else served the reads.
    assert rate_at(curve_from_bandwidth([(5, 1000), (20, 1000), (40, 100)], 10), 2.0) == 0.5


@pytest.mark.parametrize("points", [[(5, 100), (40, 100)], [(5, 100)], [(40, 100)]])
def test_a_sweep_that_shows_no_cache_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="sweep"):
        curve_from_bandwidth(points, 10)


def test_a_relatives_curve_is_stretched_to_the_usable_bytes() -> None:
    curve = curve_from_rule("gpu", 0.5)
    assert scaled(curve, 1.4)[1] == (pytest.approx(0.7), 1.0)
    # 1.4 times 0.8 is more than the nominal size, and so is the share that hits there.
    assert scaled(((0.0, 1.0), (0.9, 1.0)), 2)[1] == (1.8, pytest.approx(1 / 1.8))


def test_the_public_names() -> None:
    assert fx_partition.device("MI300X") in fx_partition.devices()
    assert isinstance(fx_partition.detect()[0], fx_partition.Device)
