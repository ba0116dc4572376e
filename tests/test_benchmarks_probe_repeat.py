"""The check that a probe finds the same each time: what its spreads are, and what it counts as missed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import probe_repeat

L2, L3 = "cpu:L2 usable_bytes", "cpu:L3 memory_bandwidth"


def test_a_spread_is_of_what_all_runs_found() -> None:
    found = probe_repeat.spreads([{L2: 100.0, L3: 8.0}, {L3: 10.0}, {L2: 110.0, L3: 9.0}])
    assert found == {L2: None, L3: pytest.approx(0.25)}
    assert probe_repeat.spreads([{L2: 100.0}, {L2: 110.0}]) == {L2: pytest.approx(0.1)}


@pytest.mark.parametrize(
    ("last", "seconds", "code", "words"),
    [
        ({L2: 2.2 * 2**20}, 10.0, 0, "All targets are met."),
        ({L2: 2.4 * 2**20}, 10.0, 1, f"Missed: {L2}."),
        ({L2: 2.2 * 2**20}, 21.0, 1, "Missed: time of the probe."),
        ({}, 10.0, 1, f"Missed: {L2}."),
    ],
)
def test_what_is_missed(
    last: dict[str, float], seconds: float, code: int, words: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = iter([(10.0, {L2: 2.0 * 2**20}), (seconds, last)])
    monkeypatch.setattr(probe_repeat, "run", lambda seconds: next(runs))
    monkeypatch.setattr(sys, "argv", ["probe_repeat.py", "--runs", "2"])
    assert probe_repeat.main() == code
    printed = capsys.readouterr().out
    assert words in printed and "2.00" in printed
