"""Where stages keep their weights by a window, a device's name stands for no more than it can set aside."""

from __future__ import annotations

import pytest

from fx_partition.backends.cuda import resident_budget
from fx_partition.backends.cuda.resident_budget import resident_request
from fx_partition.passes.plan.request import Request

MIB = 2**20


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_budget, "can_persist", lambda: True)


def budgets(cache_bytes: int | str | list[int | str]) -> tuple[int | None, tuple[int, ...]]:
    found = resident_request(Request.check(cache_bytes), cache_bytes)
    return found.budget, found.budgets


def test_a_name_stands_for_what_can_be_set_aside() -> None:
    assert Request.check("H200").budget == 43 * MIB
    assert budgets("H200") == (int(37.5 * MIB), ())


def test_a_number_and_a_device_without_a_set_aside_stay_as_they_are() -> None:
    assert budgets("43MiB") == (43 * MIB, ())
    assert budgets("V100-SXM2-32") == (Request.check("V100-SXM2-32").budget, ())


def test_each_device_of_a_list_has_its_own() -> None:
    assert budgets(["H200", 50 * MIB]) == (50 * MIB, (int(37.5 * MIB), 50 * MIB))
    assert budgets(["H200", "37.5MiB"]) == (int(37.5 * MIB), ())


def test_without_cuda_bindings_nothing_can_be_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_budget, "can_persist", lambda: False)
    assert budgets("H200") == (43 * MIB, ())
