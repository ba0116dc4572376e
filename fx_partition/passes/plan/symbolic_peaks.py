"""Which steps of a partition can be its peak, symbolically.

The footprint of a partition is the largest of its steps' sizes, each a polynomial in the graph's symbols. Building a
`sympy.Max` over them is slow (80 terms took ten seconds), and most can never be the largest: a step whose every
coefficient is at most another's is dropped. What is left is a handful, and a single one where the graph is static.
"""

from __future__ import annotations

from functools import lru_cache

from ..capture.symbolic_sizes import Size, Terms, dominates, from_terms, largest, terms
from ..footprint.graph_memory import GraphMemory
from ..partitioner.chain import IntArray
from .records import PeakCandidate


def add_up(facts: GraphMemory, first: int, end: int) -> PeakCandidate:
    """What the steps of [first, end) make and allocate in all, as of the last of them."""
    made: Terms = {}
    workspace: Terms = {}
    for t in range(first, end):
        step = facts.steps[t]
        for value in step.values:
            if facts.values[value].made_at == t:
                _add(made, _terms_of(facts.values[value].bytes), 1)
        _add(workspace, _terms_of(largest(step.workspace)), 1)
    return PeakCandidate(facts.steps[end - 1].node, from_terms(made), from_terms(workspace))


def find_moments(
    facts: GraphMemory, last_touch: IntArray, first: int, end: int, peak: int
) -> tuple[PeakCandidate, ...]:
    """The steps of [first, end) that no other step dominates; the one at ``peak`` is always kept and comes first.

    Args:
        last_touch: the last step that touches each value.
        peak: the step that is the fullest under the plan's binding.

    Linear in steps and touches, times the few steps that are kept.
    """
    leaves: dict[int, list[int]] = {}
    resident: Terms = {}
    last: dict[int, int] = {}
    for t in range(first, end):
        for value in facts.steps[t].values:
            last[value] = t
    for value, t in last.items():
        stays = facts.values[value].returned or last_touch[value] >= end
        leaves.setdefault(end - 1 if stays else t, []).append(value)
        if facts.values[value].made_at < first:
            _add(resident, _terms_of(facts.values[value].bytes), 1)

    kept: list[tuple[Terms, int, Terms, Size]] = []  # total, step, resident, workspace
    for t in range(first, end):
        for value in facts.steps[t].values:
            if facts.values[value].made_at == t:
                _add(resident, _terms_of(facts.values[value].bytes), 1)
        for workspace in facts.steps[t].workspace:
            total = dict(resident)
            _add(total, _terms_of(workspace), 1)
            if t != peak and any(dominates(other[0], total) for other in kept):
                continue
            kept = [other for other in kept if other[1] == peak or not dominates(total, other[0])]
            kept.append((total, t, dict(resident), workspace))
        for value in leaves.get(t, ()):
            _add(resident, _terms_of(facts.values[value].bytes), -1)
    kept.sort(key=lambda entry: entry[1] != peak)
    return tuple(PeakCandidate(facts.steps[t].node, from_terms(parts), workspace) for _, t, parts, workspace in kept)


@lru_cache(maxsize=4096)
def _terms_of(size: Size) -> Terms:
    return terms(size)


def _add(total: Terms, parts: Terms, sign: int) -> None:
    for monomial, coefficient in parts.items():
        total[monomial] = total.get(monomial, 0) + sign * coefficient
