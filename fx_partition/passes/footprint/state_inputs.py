"""Inputs that the graph writes are state: resident wherever they are touched, as weights are.

Before: a cache is value 0, an input; ``copy_`` writes value 0
After:  the cache is a weight behind the others; ``copy_`` writes that weight, and the other values are numbered anew
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .graph_memory import GraphMemory, Role


def with_state(facts: GraphMemory, inputs: Mapping[str, frozenset[int]], parameters: frozenset[int]) -> GraphMemory:
    """The facts with written inputs among the weights; steps are changed in place.

    Args:
        facts: those of a graph whose inputs are all values.
        inputs: the values that each input holds.
        parameters: the weights that hold a parameter, which are no state though written.
    """
    written = {n for step in facts.steps for n in step.writes if facts.values[n].role is Role.INPUT}
    sizes, names = list(facts.weight_bytes), list(facts.weight_names)
    weight_of: dict[int, int] = {}
    for number in sorted(written):
        weight_of[number] = len(sizes)
        sizes.append(facts.values[number].bytes)
        names.append(facts.values[number].name)
    kept = [n for n in range(len(facts.values)) if n not in written]
    renumbered = {old: new for new, old in enumerate(kept)}
    for step in facts.steps:
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
        facts,
        values=[facts.values[n] for n in kept],
        weight_bytes=sizes,
        weight_names=names,
        weight_of=facts.weight_of | held,
        holds={name: tuple(renumbered[n] for n in ns if n not in written) for name, ns in facts.holds.items()},
        state=frozenset(n for step in facts.steps for n in step.weight_writes) - parameters,
    )
