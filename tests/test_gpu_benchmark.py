"""The arithmetic of benchmarks/gpu.py; what it measures needs a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"

# Parts of measured curves: (MiB, GB/s). A100: the first size is too small to fill it; H100: the small ones are fastest.
A100 = [(1.5, 4316), (4, 5467), (12, 5435), (23, 5427), (27.5, 5170), (30, 4000), (36, 3004), (39.5, 2462), (98, 1867)]
H100 = [(1, 7758), (3, 7254), (9, 6994), (18, 6921), (30, 6953), (36, 6847), (39.5, 5729), (43, 4253), (47, 3453)]


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_benchmark"]


@pytest.mark.parametrize(("curve", "at_90", "at_50"), [(A100, 27.5, 36), (H100, 36, 43)], ids=["A100", "H100"])
def test_the_knee_of_measured_curves(
    gpu: ModuleType, curve: list[tuple[float, float]], at_90: float, at_50: float
) -> None:
    assert gpu.knee(curve, 0.9) == at_90
    assert gpu.knee(curve, 0.5) == at_50
    assert gpu.plateau(curve) == pytest.approx(5400 if curve is A100 else 6950, rel=0.05)


def test_a_curve_that_never_falls_has_no_knee(gpu: ModuleType) -> None:
    assert gpu.knee([(1, 10), (2, 100), (4, 99), (8, 97)], 0.9) is None
    assert gpu.knee([(1, 10), (2, 100), (4, 99), (8, 88)], 0.9) == 4


def test_a_pipeline_is_as_fast_as_its_slowest_stage_or_link(gpu: ModuleType) -> None:
    bound_by_stage = gpu.project(whole=80e-6, stage=5e-6, stages=8, hop_bytes=10_000, link_bytes_a_second=10e9)
    assert bound_by_stage.period == pytest.approx(5e-6)
    assert bound_by_stage.latency == pytest.approx(8 * 5e-6 + 7 * 1e-6)
    assert (bound_by_stage.speedup, bound_by_stage.per_gpu) == (pytest.approx(16), pytest.approx(2))
    bound_by_link = gpu.project(whole=80e-6, stage=5e-6, stages=8, hop_bytes=400_000, link_bytes_a_second=10e9)
    assert bound_by_link.period == pytest.approx(40e-6)
    assert bound_by_link.per_gpu == pytest.approx(0.25)


def test_rows_of_the_tables(gpu: ModuleType) -> None:
    sizes = {0.5: 25 * 2**20}
    times = {
        (0.5, "whole", False): 40e-6,
        (0.5, "whole", True): 20e-6,
        (0.5, "alone", False): 30e-6,
        (0.5, "alone", True): 10e-6,
    }
    assert gpu.stage_rows(times, sizes) == [
        ["25.0", "0.50", "no", "40.00", "30.00", "-", "1.33"],
        ["25.0", "0.50", "yes", "20.00", "10.00", "-", "2.00"],
    ]
    times[0.5, "window", True] = 8e-6
    assert gpu.stage_rows(times, sizes)[1][-2:] == ["8.00", "2.50"]
    (row,) = gpu.pipeline_rows(times, sizes, stages=4, link_gbs=450)
    hop = 16 * gpu.width_for(25 * 2**20) * 2 / 450e9 * 1e6
    assert row == ["25.0", "4", "80.00", "8.00", f"{32 + 3 * hop:.2f}", "10.00", "2.50"]


def test_a_stage_has_the_size_asked_for(gpu: ModuleType) -> None:
    for fraction in gpu.FRACTIONS:
        width = gpu.width_for(fraction * 50 * 2**20)
        assert 2 * width * width * 2 == pytest.approx(fraction * 50 * 2**20, rel=0.06)


def test_a_table_is_aligned(gpu: ModuleType) -> None:
    assert gpu.table(("MiB", "GB/s"), [("1", "12345"), ("1000", "7")]) == " MiB   GB/s\n   1  12345\n1000      7"


def test_a_link_is_known_by_the_name_of_the_gpu(gpu: ModuleType) -> None:
    names = ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", "NVIDIA L4")
    assert [gpu.link_of(name) for name in names] == [64, 450, 64]


def test_torch_is_all_that_it_needs() -> None:
    """The package's other dependencies serve reports and planning, which a bare GPU machine may lack."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(tabulate=None, tqdm=None)\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='benchmark')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 0
    assert capsys.readouterr().out == "no CUDA device: nothing measured\n"
