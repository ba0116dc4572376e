"""What the two quick tests share: they are two files so that two processes take them."""

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


def assert_worth_it(outcome: Outcome) -> None:
    """Most programs are taken by every road, and of these a fair share is really cut."""
    runs, cut = outcome.runs, outcome.cut
    splits, split_cut = runs["export"] + runs["symbolic_trace"], cut["export"] + cut["symbolic_trace"]
    assert runs["backend"] >= 0.85 * outcome.programs, outcome.summary()
    assert splits >= 0.6 * outcome.programs, outcome.summary()
    assert cut["backend"] >= 0.5 * runs["backend"], outcome.summary()
    assert split_cut >= 0.4 * splits, outcome.summary()
    assert outcome.fallbacks.total() <= 0.02 * outcome.programs, outcome.summary()
