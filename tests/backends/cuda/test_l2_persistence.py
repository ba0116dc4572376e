"""The windows of L2 persistence have the right sizes, and every setting of the driver is reset."""

from __future__ import annotations

import gc
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_fakes import FakeCalls, FakeDriver
from hypothesis import given
from hypothesis import strategies as st

from fx_partition.backends.cuda import l2_persistence
from fx_partition.backends.cuda.l2_persistence import (
    NO_WINDOW,
    Bindings,
    Persistence,
    persist,
    set_aside_for,
    windows_over,
)
from fx_partition.common.errors import PartitionWarning

DEVICE = torch.device("cpu:0")
MIB = 2**20


@given(st.lists(st.integers(0, 300 * MIB), max_size=5), st.integers(0, 100 * MIB), st.integers(1, 200 * MIB))
def test_windows_are_clamped_and_share_the_set_aside(sizes: list[int], most: int, largest: int) -> None:
    set_aside = set_aside_for(sizes, most, largest)
    windows = windows_over([(4096, size) for size in sizes], set_aside, largest)
    assert set_aside <= most
    assert all(window.size == min(size, largest) for window, size in zip(windows, sizes, strict=True))
    assert all(0 <= window.hit_ratio <= 1 for window in windows)
    persisting = sum(window.size * window.hit_ratio for window in windows)
    assert persisting == pytest.approx(set_aside)  # all of it is used, and no more


def test_figures_of_known_gpus() -> None:
    """H200: 37.5 MiB at most, in windows of 128 MiB at most (devices.json)."""
    most, largest = int(37.5 * MIB), 128 * MIB
    assert set_aside_for([20 * MIB], most, largest) == 20 * MIB
    assert windows_over([(0, 20 * MIB)], 20 * MIB, largest)[0].hit_ratio == 1
    (wide,) = windows_over([(0, 300 * MIB)], set_aside_for([300 * MIB], most, largest), largest)
    assert wide.size == largest and wide.hit_ratio == 37.5 / 128
    assert windows_over([(0, 0), (9, 10 * MIB)], 5 * MIB, largest)[0] == NO_WINDOW


def make(calls: FakeCalls, sizes: tuple[int, ...] = (30, 50)) -> tuple[Persistence, list[Any]]:
    driver = FakeDriver()
    packs = [(driver.stream(DEVICE), torch.zeros(size, dtype=torch.uint8)) for size in sizes]
    return Persistence(DEVICE, packs, calls), packs


def test_windows_over_packs_and_back() -> None:
    calls = FakeCalls()
    persistence, packs = make(calls)
    assert [(w.address, w.size, w.hit_ratio) for w in persistence.windows] == [
        (pack.data_ptr(), pack.numel(), 0.5) for _, pack in packs
    ]
    persistence.close()
    persistence.close()
    assert calls.log == [
        ("change_set_aside", 40),
        ("set_window", 30),
        ("set_window", 50),
        ("set_window", 0),
        ("set_window", 0),
        ("reset_lines",),
        ("change_set_aside", 7),
    ]


def test_a_stream_that_captures_has_the_window_of_a_pack_meanwhile() -> None:
    calls = FakeCalls()
    persistence, packs = make(calls, (30, 50))
    other = FakeDriver().stream(DEVICE)
    with persistence.window_on(other, packs[1][1]):
        assert calls.windows[other.cuda_stream] == persistence.windows[1] != NO_WINDOW
    assert calls.windows[other.cuda_stream] == NO_WINDOW
    with persistence.window_on(other, torch.zeros(0, dtype=torch.uint8)):  # a stage without weights
        assert calls.windows[other.cuda_stream] == NO_WINDOW
    persistence.close()


def test_the_ratio_is_of_what_the_driver_granted() -> None:
    class Rounds(FakeCalls):
        def change_set_aside(self, size: int) -> None:
            super().change_set_aside(size // 16 * 16)

    persistence, _ = make(Rounds())
    assert {window.hit_ratio for window in persistence.windows} == {32 / 80}
    persistence.close()


@pytest.mark.parametrize("refuses", ["change_set_aside", "set_window", "reset_lines"])
def test_a_refusal_takes_everything_else_back(refuses: str) -> None:
    calls = FakeCalls(refuses=refuses)
    with pytest.raises(RuntimeError, match=f"{refuses} refused"):
        make(calls)[0].close()
    assert {("reset_lines",), ("change_set_aside", 7), ("set_window", 0)} <= set(calls.log)
    make(FakeCalls())[0].close()  # the device is free again


def test_what_is_dropped_unclosed_is_taken_back() -> None:
    calls = FakeCalls()
    persistence, _ = make(calls)
    del persistence
    gc.collect()
    assert calls.log[-1] == ("change_set_aside", 7)


def test_without_it_a_pipeline_goes_on() -> None:
    stream = FakeDriver().stream(DEVICE)
    pack = torch.zeros(10, dtype=torch.uint8)
    assert persist(DEVICE, [(stream, pack)], None) is None
    with pytest.warns(PartitionWarning, match="sets no L2 aside"):
        assert persist(DEVICE, [(stream, pack)], FakeCalls(most=0)) is None
    with pytest.warns(PartitionWarning, match="set_window refused"):
        assert persist(DEVICE, [(stream, pack)], FakeCalls(refuses="set_window")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert persist(DEVICE, [(stream, pack[:0])], FakeCalls()) is None  # no weights, nothing to say
        first = persist(DEVICE, [(stream, pack)], FakeCalls())
    assert first is not None
    with pytest.warns(PartitionWarning, match="another pipeline holds"):
        assert persist(DEVICE, [(stream, pack)], FakeCalls()) is None
    first.close()


def test_without_the_package_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(l2_persistence.importlib, "import_module", fail)
    l2_persistence._runtime.cache_clear()
    with pytest.warns(PartitionWarning, match=r"cuda.bindings is not installed") as caught:
        assert l2_persistence.bindings(DEVICE) is l2_persistence.bindings(DEVICE) is None
    assert len(caught) == 1
    l2_persistence._runtime.cache_clear()


def test_calls_name_the_driver_s_functions_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    success, failure = SimpleNamespace(name="cudaSuccess"), SimpleNamespace(name="cudaErrorInvalidValue")

    def answers(name: str, *answer: Any) -> Any:
        return lambda *arguments: (log.append((name, *arguments)), answer)[1]

    runtime = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=success),
        cudaDeviceAttr=SimpleNamespace(
            cudaDevAttrMaxPersistingL2CacheSize="persisting", cudaDevAttrMaxAccessPolicyWindowSize="window"
        ),
        cudaLimit=SimpleNamespace(cudaLimitPersistingL2CacheSize="limit"),
        cudaAccessProperty=SimpleNamespace(
            cudaAccessPropertyPersisting="persisting",
            cudaAccessPropertyStreaming="streaming",
            cudaAccessPropertyNormal="normal",
        ),
        cudaAccessPolicyWindow=SimpleNamespace,
        cudaStreamAttrValue=SimpleNamespace,
        cudaStreamAttrID=SimpleNamespace(cudaLaunchAttributeAccessPolicyWindow="policy"),
        cudaDeviceGetAttribute=answers("cudaDeviceGetAttribute", success, 30),
        cudaDeviceGetLimit=answers("cudaDeviceGetLimit", success, 20),
        cudaDeviceSetLimit=answers("cudaDeviceSetLimit", failure),
        cudaStreamSetAttribute=answers("cudaStreamSetAttribute", success),
        cudaCtxResetPersistingL2Cache=answers("cudaCtxResetPersistingL2Cache", success),
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.device(device))  # a context that does nothing
    calls = Bindings(runtime, torch.device("cuda:3"))
    assert (calls.most_set_aside(), calls.largest_window(), calls.set_aside()) == (30, 30, 20)
    with pytest.raises(RuntimeError, match="cudaDeviceSetLimit: cudaErrorInvalidValue"):
        calls.change_set_aside(5)
    stream = SimpleNamespace(cuda_stream=1234)
    calls.set_window(stream, l2_persistence.AccessPolicyWindow(4096, 10, 0.25))
    calls.set_window(stream, NO_WINDOW)
    calls.reset_lines()
    assert log[:4] == [
        ("cudaDeviceGetAttribute", "persisting", 3),
        ("cudaDeviceGetAttribute", "window", 3),
        ("cudaDeviceGetLimit", "limit"),
        ("cudaDeviceSetLimit", "limit", 5),
    ]
    assert [entry[:3] for entry in log[4:6]] == [("cudaStreamSetAttribute", 1234, "policy")] * 2
    assert [vars(entry[3].accessPolicyWindow) for entry in log[4:6]] == [
        {"base_ptr": 4096, "num_bytes": 10, "hitRatio": 0.25, "hitProp": "persisting", "missProp": "streaming"},
        {"base_ptr": 0, "num_bytes": 0, "hitRatio": 0.0, "hitProp": "normal", "missProp": "normal"},
    ]
    assert log[6] == ("cudaCtxResetPersistingL2Cache",)
