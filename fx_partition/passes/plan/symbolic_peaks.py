"""Find the steps of a partition that can be its peak for some binding of the symbols.

The footprint of a partition is the largest of its steps' sizes, each a polynomial in the graph's symbols. Building a
`sympy.Max` over them is slow (80 terms took ten seconds), and most can never be the largest: a step is dropped if each
of its coefficients is at most the same coefficient of another step. A handful remains, and one step where the graph is
static.
"""

from __future__ import annotations

from functools import lru_cache

from ..capture.symbolic_sizes import Size, Terms, dominates, from_terms, largest, terms
from ..footprint.graph_memory import GraphMemory
from ..partitioner.chain import IntArray
from .records import PeakCandidate


def add_up(memory: GraphMemory, first: int, end: int) -> PeakCandidate:
    """Return, for a chain that adds up, the bytes that all steps of [first, end) make and allocate."""
    made: Terms = {}
    workspace: Terms = {}
    for t in range(first, end):
        step = memory.steps[t]
        for value in step.values:
            if memory.values[value].made_at == t:
                _add(made, _terms_of(memory.values[value].bytes), 1)
        _add(workspace, _terms_of(largest(step.workspace)), 1)
    return PeakCandidate(memory.steps[end - 1].node, from_terms(made), from_terms(workspace))


def find_peak_candidates(
    memory: GraphMemory, last_touch: IntArray, first: int, end: int, peak: int
) -> tuple[PeakCandidate, ...]:
    """Return the steps of [first, end) that no other step dominates; the one at ``peak`` is always first.

    Linear in steps and touches, times the few steps that are kept.

    Args:
        memory: the graph's, in the order in which its steps run.
        last_touch: the last step that touches each value.
        first, end: the partition.
        peak: the step with the most bytes under the plan's binding.
    """
    leaves: dict[int, list[int]] = {}
    resident: Terms = {}
    last: dict[int, int] = {}
    for t in range(first, end):
        for value in memory.steps[t].values:
            last[value] = t
    for value, t in last.items():
        stays = memory.values[value].returned or last_touch[value] >= end
        leaves.setdefault(end - 1 if stays else t, []).append(value)
        if memory.values[value].made_at < first:
            _add(resident, _terms_of(memory.values[value].bytes), 1)

    kept: list[tuple[Terms, int, Terms, Size]] = []  # total, step, resident, workspace
    for t in range(first, end):
        for value in memory.steps[t].values:
            if memory.values[value].made_at == t:
                _add(resident, _terms_of(memory.values[value].bytes), 1)
        for workspace in memory.steps[t].workspace:
            total = dict(resident)
            _add(total, _terms_of(workspace), 1)
            if t != peak and any(dominates(other[0], total) for other in kept):
                continue
            kept = [other for other in kept if other[1] == peak or not dominates(total, other[0])]
            kept.append((total, t, dict(resident), workspace))
        for value in leaves.get(t, ()):
            _add(resident, _terms_of(memory.values[value].bytes), -1)
    kept.sort(key=lambda entry: entry[1] != peak)
    return tuple(PeakCandidate(memory.steps[t].node, from_terms(parts), workspace) for _, t, parts, workspace in kept)


@lru_cache(maxsize=4096)
def _terms_of(size: Size) -> Terms:
    return terms(size)


def _add(total: Terms, parts: Terms, sign: int) -> None:
    for monomial, coefficient in parts.items():
        total[monomial] = total.get(monomial, 0) + sign * coefficient
