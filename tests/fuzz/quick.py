"""The shared part of the two quick tests, which are two files so that two processes run them."""

from __future__ import annotations

from collections.abc import Iterable

from .campaign import Outcome, try_seed


def try_all(seeds: Iterable[int], roads: tuple[str, ...] = ()) -> Outcome:
    """Run the programs of some seeds, and assert that none failed, that most were cut, and that few fell back."""
    outcome = Outcome()
    failures = [
        f"seed {seed}, {verdict.road}: {verdict.fault}"
        for seed in seeds
        for verdict in outcome.add(*try_seed((seed, roads, ())))
    ]
    assert not failures, "\n\n".join(failures)
    print(outcome.summary())
    return outcome


def assert_worth_it(outcome: Outcome, road: str, *, runs: float, cut: float) -> None:
    """Torch runs so large a share of the programs by this road, of these such a share is cut, and few fall back."""
    assert outcome.runs[road] >= runs * outcome.programs, outcome.summary()
    assert outcome.cut[road] >= cut * outcome.runs[road], outcome.summary()
    assert outcome.fallbacks.total() <= 0.04 * outcome.programs, outcome.summary()
