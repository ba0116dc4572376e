"""The input of every planner: a graph, fx_partition's analysis of its nodes, and the timing of a plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch.fx

from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.constraints.atoms import find_atoms
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.partitioner.build_chain import lay_out
from fx_partition.passes.partitioner.chain import Chain

from .graphs import Graph
from .scorer import Score, Scorer

A = TypeVar("A")
T = TypeVar("T")

RUNS = 5
# A planner that takes longer than this for its warm-up is not run again: that one run is its time.
LONG_SECONDS = 1.0


@dataclass(frozen=True)
class Planned:
    """A planner's answer.

    Attributes:
        assignment: ``{node name: partition}`` in execution order.
        seconds: median time of planning alone.
        note: what else to know.
    """

    assignment: Mapping[str, int]
    seconds: float
    note: str = ""


class NoPlan(Exception):
    """Raised with the reason if a planner has no answer."""


@dataclass(frozen=True)
class Case:
    """A graph and its memory, made once for all planners.

    Attributes:
        memory: the memory of the graph's nodes, in graph order.
        steps: node names in execution order, atoms contiguous.
        step_bytes: of each step, the weights that it touches and the values that it makes: the sizes given to planners
            that want a number an operator.
        scorer: the judge.
        capture_seconds: what it took to capture the exported graph and to analyse its memory.
    """

    graph: Graph
    captured: CapturedGraph
    memory: GraphMemory
    chain: Chain
    steps: list[str]
    step_bytes: list[int]
    scorer: Scorer
    capture_seconds: float

    @property
    def gm(self) -> torch.fx.GraphModule:
        return self.graph.gm

    def atom_bytes(self) -> list[int]:
        """Return ``step_bytes`` summed over each atom."""
        bounds = self.chain.atom_start.tolist()
        return [sum(self.step_bytes[i:j]) for i, j in pairwise(bounds)]

    def by_atoms(self, boundaries: Sequence[int]) -> dict[str, int]:
        """Return the assignment of boundaries ``[0, ..., number of atoms]``."""
        starts = self.chain.atom_start.tolist()
        assignment: dict[str, int] = {}
        for partition, (i, j) in enumerate(pairwise(boundaries)):
            assignment |= dict.fromkeys(self.steps[starts[i] : starts[j]], partition)
        return assignment

    def score(self, assignment: Mapping[str, int]) -> Score:
        return self.scorer.score(assignment)

    def fewest(self, budget: int) -> int:
        """Return a lower bound on the partitions of any plan: the weights that are read over the budget, rounded up."""
        chain = self.chain
        touched = np.zeros_like(chain.weight_bytes)
        np.add.at(touched, chain.weight_id, chain.weight_touch_bytes)
        return max(1, -(-int(np.minimum(touched, chain.weight_bytes).sum()) // budget))


def make_case(graph: Graph) -> Case:
    start = time.perf_counter()
    captured = capture(graph.gm)
    memory = analyze_memory(captured)
    seconds = time.perf_counter() - start
    atoms = find_atoms(captured, memory)
    ordered = memory.reordered(atoms.order)
    chain = lay_out(ordered, atoms, memory.symbols.bind(None))
    steps = [step.node for step in ordered.steps]
    made = [0] * len(steps)
    for size, step in zip(chain.value_bytes.tolist(), chain.value_def.tolist(), strict=True):
        if step >= 0:
            made[step] += size
    starts, touched = chain.weight_start.tolist(), chain.weight_touch_bytes.tolist()
    step_bytes = [sum(touched[starts[t] : starts[t + 1]]) + made[t] for t in range(len(steps))]
    workspace = dict(zip(steps, chain.workspace.tolist(), strict=True))
    return Case(graph, captured, memory, chain, steps, step_bytes, Scorer(graph.gm, workspace), seconds)


def timed(plan: Callable[[A], T], prepare: Callable[[], A]) -> tuple[T, float]:
    """Return a planner's answer and the median seconds of five runs after a warm-up (of that alone if it is long).

    ``prepare`` makes what one run is given, and is not timed.
    """
    answer, seconds = _run(plan, prepare())
    if seconds > LONG_SECONDS:
        return answer, seconds
    return answer, statistics.median(_run(plan, prepare())[1] for _ in range(RUNS))


def _run(plan: Callable[[A], T], given: A) -> tuple[T, float]:
    start = time.perf_counter()
    answer = plan(given)
    return answer, time.perf_counter() - start


def smallest_that_fits(case: Case, budget: int, split: Callable[[list[int], int], list[int]]) -> Planned:
    """Try k upward until the scorer accepts the answer of a planner of a given k; all runs are its time.

    Args:
        split: (bytes of each atom, k) -> boundaries ``[0, ..., number of atoms]``.

    Raises:
        NoPlan: no k up to three times the least that could do.
    """
    sizes, fewest = case.atom_bytes(), case.fewest(budget)
    most = 3 * fewest + 2
    warm_up = 0.0
    for k in range(fewest, most + 1):
        boundaries, seconds = _run(partial(split, sizes), k)
        warm_up += seconds
        assignment = case.by_atoms(boundaries)
        if case.score(assignment).fits(budget):
            if warm_up > LONG_SECONDS:
                return Planned(assignment, warm_up)
            _, seconds = timed(lambda counts: [split(sizes, j) for j in counts], partial(range, fewest, k + 1))
            return Planned(assignment, seconds)
    raise NoPlan(f"none from k = {fewest} to {most} fits")


def with_smaller_budgets(plan: Callable[[Case, int], Planned], case: Case, budget: int) -> Planned:
    """Return the best answer that fits of a planner that counts less than the footprint, over smaller budgets.

    Raises:
        NoPlan: none fits.
    """
    best: tuple[tuple[int, int, int], Planned] | None = None
    for given in smaller_budgets(budget)[1:]:
        try:
            planned = plan(case, given)
        except NoPlan:
            break  # with less still, it has none either
        score = case.score(planned.assignment)
        if best is not None and score.num_partitions > best[0][0]:
            break
        if score.fits(budget) and (best is None or score.key < best[0]):
            best = score.key, replace(planned, note=f"given {100 * given / budget:.0f}% of the budget")
    if best is None:
        raise NoPlan("it fits for none of 95% to 30% of the budget")
    return best[1]


def smaller_budgets(budget: int) -> list[int]:
    """Return the budget, then 95% of it, 90% and so on to 30%."""
    return [budget * percent // 100 for percent in range(100, 25, -5)]
