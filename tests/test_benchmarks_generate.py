"""The benchmark of decoding shares out sequences, compares within rounds, and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from decoding.models import Case
from decoding.ways import BATCH, GENERATE, PIPELINE, REPLICAS, STEPS, WAYS, Crew, Texts
from generate import Row, show

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "generate.py"


class Echo(Crew):
    """Workers that answer at once: each sequence is its prompt, worker ``liar`` says something else."""

    def __init__(self, liar: int = -1) -> None:
        self._liar = liar
        self._connections = [EchoConnection(self, worker) for worker in range(6)]  # type: ignore[misc]


class EchoConnection:
    def __init__(self, crew: Echo, worker: int) -> None:
        self._worker, self._liar = worker, crew._liar

    def send(self, command: tuple[str, str, list[int]]) -> None:
        self._prompts = command[2]

    def recv(self) -> tuple[float, Texts]:
        return self._worker + 1.0, [[prompt + (self._worker == self._liar)] for prompt in self._prompts]


def test_workers_that_share_sequences_take_as_long_as_the_last() -> None:
    assert Echo().seconds(REPLICAS, [1, 2, 3]) == 5.0
    assert Echo().seconds(GENERATE, [1, 2, 3]) == 2.0


def test_other_tokens_than_eager_s_are_named() -> None:
    Echo().check([3, 1, 2])
    for worker, name in ((0, PIPELINE), (2, STEPS), (4, REPLICAS)):
        with pytest.raises(AssertionError, match=f"^{name} generates other tokens"):
            Echo(liar=worker).check([3, 1, 2])


def test_a_ratio_is_taken_within_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    """The quotient of the medians would be 1."""
    rates = {name: [1.0, 1.0, 1.0] for name in WAYS} | {PIPELINE: [30.0, 3.0, 20.0], BATCH: [20.0, 2.0, 20.0]}
    row = Row(Case(64, 2, 8), 4, 1 << 20, rates)
    assert row.ratio(BATCH) == 1.5
    show([row], "github")
    text = capsys.readouterr().out
    assert "1.50" in text and all(f"/ {name}" in text for name in WAYS if name != PIPELINE)


@pytest.mark.slow
def test_the_quick_benchmark_runs() -> None:
    command = [sys.executable, "-W", "ignore", str(BENCHMARK), "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr  # all ways gave eager mode's tokens; timings decide no test
    assert "hidden 64, 2 layers" in result.stdout and "/ generate, a batch" in result.stdout
