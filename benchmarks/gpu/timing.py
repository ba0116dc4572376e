"""Time work on a GPU: many repetitions in one CUDA graph, variants in turn, round after round.

One launch of a graph runs all its repetitions, so that the time of launching from the host decides nothing. What a
repetition keeps of that is the gap between the kernels of a graph, which `curve` measures by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

from .figures import summary

Name = TypeVar("Name", bound=Hashable)

REPETITIONS = 50
_WARM_UP = 3


def graph_of(call: Callable[[int], Any], repetitions: int) -> Callable[[], None]:
    """Return the replay of a CUDA graph of ``call(0)``, ..., ``call(repetitions - 1)``, on the current stream."""
    for i in range(_WARM_UP):  # loads kernels and picks algorithms, which a capture cannot
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for i in range(repetitions):
            call(i)
    return graph.replay


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds that the device takes for what ``call`` enqueues on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def in_turn(
    variants: Mapping[Name, tuple[Callable[[], Any], int]], rounds: int
) -> dict[Name, dict[str, float]]:
    """Return the times of one repetition of each variant (see `figures.summary`), measured round after round.

    Args:
        variants: by name, what to call and how many repetitions one call runs.
        rounds: samples of each; as many rounds as a graph warms up go before.
    """
    samples: dict[Name, list[float]] = {name: [] for name in variants}
    for i in range(rounds + _WARM_UP):
        for name, (call, repetitions) in variants.items():
            call()  # what ran before has left other data in L2
            sample = seconds_of(call) / repetitions
            if i >= _WARM_UP:
                samples[name].append(sample)
    return {name: summary(found) for name, found in samples.items()}


def on_a_stream(run: Callable[[], Any]) -> Any:
    """Run something on a stream that may be captured, without gradients, and wait for it."""
    torch.cuda.synchronize()  # what it reads was made on another stream
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        found = run()
        torch.cuda.synchronize()
    return found
