"""Turn the inputs that a graph writes into state, which stays resident wherever it is touched, as weights do.

Before: a cache is value 0, an input; ``copy_`` writes value 0
After:  the cache is a weight after the others; ``copy_`` writes that weight, and the other values have new numbers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .graph_memory import GraphMemory, Role


def with_state(memory: GraphMemory, inputs: Mapping[str, frozenset[int]], parameters: frozenset[int]) -> GraphMemory:
    """Return the memory of a graph with written inputs among the weights; change its steps in place.

    Args:
        memory: the memory of a graph in which all inputs are values.
        inputs: the values of each input, by the input's name.
        parameters: the weights that hold a parameter; these are not state, even if the graph writes them.
    """
    written = {n for step in memory.steps for n in step.writes if memory.values[n].role is Role.INPUT}
    sizes, names = list(memory.weight_bytes), list(memory.weight_names)
    weight_of: dict[int, int] = {}
    for number in sorted(written):
        weight_of[number] = len(sizes)
        sizes.append(memory.values[number].bytes)
        names.append(memory.values[number].name)
    kept = [n for n in range(len(memory.values)) if n not in written]
    renumbered = {old: new for new, old in enumerate(kept)}
    for step in memory.steps:
        for number in step.values:
            if number in written:
                step.weights[weight_of[number]] = sizes[weight_of[number]]
        step.weight_writes |= {weight_of[n] for n in step.writes if n in written}
        step.weight_reshapes |= {weight_of[n] for n in step.reshapes if n in written}
        step.writes = frozenset(renumbered[n] for n in step.writes if n not in written)
        step.reshapes = frozenset(renumbered[n] for n in step.reshapes if n not in written)
        step.values = tuple(renumbered[n] for n in step.values if n not in written)
    held = {name: weight_of[n] for name, numbers in inputs.items() for n in numbers if n in written}
    return replace(
        memory,
        values=[memory.values[n] for n in kept],
        weight_bytes=sizes,
        weight_names=names,
        weight_of=memory.weight_of | held,
        holds={name: tuple(renumbered[n] for n in ns if n not in written) for name, ns in memory.holds.items()},
        state=frozenset(n for step in memory.steps for n in step.weight_writes) - parameters,
    )
