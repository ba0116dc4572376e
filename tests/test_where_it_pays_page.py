"""The page on where GPUs pay: what its sentences say follows from the records, and the planner counts the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition.passes.timing.device_speed import speed_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from where_gpus_pay import BY_RECORD, BY_TORCH, GAP, LAUNCH, STAGE, Gpu

ROOT = Path(__file__).resolve().parents[1]
PAGE = " ".join((ROOT / "docs" / "where_it_pays.md").read_text(encoding="utf-8").split())


def figures(sentence: str) -> list[float]:
    """The numbers of a sentence of the page, each in place of a #."""
    found = re.search(re.escape(sentence).replace(r"\#", r"(\d+(?:\.\d+)?)"), PAGE)
    assert found, sentence
    return [float(number) for number in found.groups()]


def test_a_stage_by_hand() -> None:
    gpu = Gpu(onchip=10.0, memory=4.0, peak=100.0)
    assert gpu.seconds(40.0, 1, 3, 0.5, resident=False) == 10.0 + 1.5
    assert gpu.seconds(40.0, 1, 3, 0.5, resident=True) == 4.0 + 1.5
    assert gpu.seconds(40.0, 20, 3, 0.5, resident=True) == 20 * 40 / 100 + 1.5  # arithmetic takes longer
    assert gpu.gain(3, 0.5, size=40.0) == pytest.approx(11.5 / 5.5)


def test_the_sentences_of_the_page_are_what_the_records_give() -> None:
    assert figures("On an H200 it is # to #,") == [
        round(BY_TORCH.onchip / BY_TORCH.memory, 1), round(BY_RECORD.onchip / BY_RECORD.memory, 1)
    ]  # fmt: skip
    mib, *claimed = figures("a stage of # MiB gains # with # kernels, # with # and # with #.")
    assert mib == STAGE / 2**20
    for gain, kernels in zip(claimed[::2], claimed[1::2], strict=True):
        assert round(BY_TORCH.gain(int(kernels), GAP), 1) == gain
    assert figures("after fusion, at # us each") == [round(1e6 * LAUNCH, 2)]
    (first,), (last,) = figures("From some # rows on"), figures("from some # on it takes longer than")
    assert first == round(BY_TORCH.peak / BY_TORCH.onchip, -1) and last == round(BY_TORCH.peak / BY_TORCH.memory, -1)
    assert BY_TORCH.gain(8, GAP, rows=int(last) + 10) == 1.0


@pytest.mark.parametrize("kernels", [2, 8])
def test_a_time_objective_counts_a_stage_as_the_page_does(kernels: int) -> None:
    """Products only, each a kernel: some 36 MiB of bf16 weights, one row; a few reads miss."""
    width = 64 * round((36 * 2**20 / kernels / 2) ** 0.5 / 64)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(kernels))).to(torch.bfloat16)
    x = torch.zeros(1, width, dtype=torch.bfloat16)
    size = kernels * width * width * 2
    plan = fx_partition.plan(model, x, cache_bytes="H200", devices=1, objective="latency")
    (found,) = fx_partition.simulate(model, x, plan=plan, device="H200").stages
    right = BY_RECORD.seconds(size, 1, kernels, LAUNCH, resident=True)
    assert found.seconds == pytest.approx(right, rel=0.07)
    noted = re.search(r"take (\d+\.\d+) us by the record of H200", plan.note)
    assert noted and float(noted[1]) * 1e-6 == pytest.approx(right, rel=0.07)
    assert speed_of("H200").launch == LAUNCH
    assert fx_partition.verify(plan, model, x) == []
