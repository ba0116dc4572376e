"""The memory of a graph as a device holds it: every weight and every state that a step is given counts whole.

On chip only what is read needs room, so a gather counts the rows that it reads. In a device's memory the whole table
is there, and so is a weight of which only the shape is asked for.

Before: an embedding of 128,256 rows touches 4,096 bytes of its table
After:  it touches the table
"""

from __future__ import annotations

from dataclasses import replace

from .graph_memory import GraphMemory


def on_device(memory: GraphMemory) -> GraphMemory:
    """Return the same memory, in which a step that is given a weight, or touches a part of it, touches all of it."""
    sizes = memory.weight_bytes
    steps = [
        replace(step, weights={weight: sizes[weight] for weight in (*step.weights, *step.given)})
        for step in memory.steps
    ]
    return replace(memory, steps=steps)
