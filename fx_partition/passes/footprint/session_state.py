"""Count the state of several sessions: each has a copy of its own of the buffers that the graph writes.

Before (one session): weights: w (16 KiB), cache (4 KiB, state); a step touches {w: 16 KiB, cache: 4 KiB}
After (8 sessions):   weights: w (16 KiB), cache (32 KiB, state); the step touches {w: 16 KiB, cache: 32 KiB}

A cache that is an input is the caller's: each request brings one, and it counts once.
"""

from __future__ import annotations

from dataclasses import replace

from ..capture.captured_graph import CapturedGraph
from .graph_memory import GraphMemory


def for_sessions(captured: CapturedGraph, memory: GraphMemory, sessions: int) -> GraphMemory:
    """Return the memory of a graph with the written buffers of so many sessions."""
    if sessions == 1:
        return memory
    held = {memory.weight_of[node.name] for node in captured.weights if node.name in memory.weight_of} & memory.state
    return replace(
        memory,
        steps=[
            replace(step, weights={w: size * sessions if w in held else size for w, size in step.weights.items()})
            for step in memory.steps
        ],
        weight_bytes=[size * sessions if w in held else size for w, size in enumerate(memory.weight_bytes)],
    )
