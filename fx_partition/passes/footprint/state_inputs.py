"""Turn values that stay from call to call into state, which is resident wherever it is touched, as weights are.

The inputs that a graph writes are state, and so are the results that a caller keeps for its next call (`kept_results`).

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
    found, weight_of = _moved(memory, written)
    held = {name: weight_of[n] for name, numbers in inputs.items() for n in numbers if n in written}
    return replace(
        found,
        weight_of=memory.weight_of | held,
        state=frozenset(n for step in memory.steps for n in step.weight_writes) - parameters,
    )


def kept_results(memory: GraphMemory, names: Mapping[int, str]) -> GraphMemory:
    """Return the memory of a graph with some of its values among the state; change its steps in place.

    Before: value 3 holds the keys of a layer; a step makes it, the graph returns it, the caller keeps it
    After:  it is a weight, whole in every partition that touches it, from the start of the partition to its end

    Args:
        memory: the memory of a graph.
        names: a name for each of these values, by the value's number.
    """
    found, weight_of = _moved(memory, set(names))
    weights = list(found.weight_names)
    for value, weight in weight_of.items():
        weights[weight] = names[value]
    return replace(found, weight_names=weights, state=memory.state | frozenset(weight_of.values()))


def _moved(memory: GraphMemory, moved: set[int]) -> tuple[GraphMemory, dict[int, int]]:
    """Return the memory with some values as weights, and the weight of each; change its steps in place."""
    sizes, names = list(memory.weight_bytes), list(memory.weight_names)
    weight_of: dict[int, int] = {}
    for number in sorted(moved):
        weight_of[number] = len(sizes)
        sizes.append(memory.values[number].bytes)
        names.append(memory.values[number].name)
    kept = [n for n in range(len(memory.values)) if n not in moved]
    renumbered = {old: new for new, old in enumerate(kept)}
    for step in memory.steps:
        for number in step.values:
            if number in moved:
                step.weights[weight_of[number]] = sizes[weight_of[number]]
        step.weight_writes |= {weight_of[n] for n in step.writes if n in moved}
        step.weight_reshapes |= {weight_of[n] for n in step.reshapes if n in moved}
        step.writes = frozenset(renumbered[n] for n in step.writes if n not in moved)
        step.reshapes = frozenset(renumbered[n] for n in step.reshapes if n not in moved)
        step.values = tuple(renumbered[n] for n in step.values if n not in moved)
    memory = replace(
        memory,
        values=[memory.values[n] for n in kept],
        weight_bytes=sizes,
        weight_names=names,
        holds={name: tuple(renumbered[n] for n in ns if n not in moved) for name, ns in memory.holds.items()},
    )
    return memory, weight_of
