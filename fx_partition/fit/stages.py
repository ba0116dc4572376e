"""The device of every module of a model that was captured with few of its blocks, for `Fit.to`.

Before: the captured graph has the blocks 0, 1, 2 and 31; block 10 is on the first device, block 11 on the second
After:  runs of all 32 blocks; those that were left out have one run each, behind the block before them
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fx_partition.common.module_paths import heads
from fx_partition.engines.module_stages import ModuleRun, ModuleStages

from ..passes.capture.captured_graph import CapturedGraph
from ..passes.constraints.module_boundaries import plain_path
from ..passes.plan.module_runs import module_stages
from .hugging_face import Shortened
from .module_graph import ModuleGraph


def device_stages(
    captured: CapturedGraph, graph: ModuleGraph, runs: Sequence[int], root: str, shortened: Sequence[Shortened]
) -> ModuleStages:
    """Return the modules of a model with their stages; a stage is a device that has pieces.

    Args:
        captured: the graph as it was captured.
        graph: its module graph, with all blocks.
        runs: the first piece of each device, then the number of pieces.
        root: the path of the user's model in the captured one.
        shortened: the lists of which blocks were left out.
    """
    stage_of_piece: list[int] = []
    for first, end in pairwise(runs):
        stage_of_piece += [stage_of_piece[-1] + 1 if stage_of_piece else 0] * (end - first)
    stage_of = {
        step.node: stage
        for stage, (first, end) in zip(stage_of_piece, pairwise(graph.starts), strict=True)
        for step in graph.memory.steps[first:end]
    }
    numbers = {f"{s.path}.{place}": f"{s.path}.{number}" for s in shortened for place, number in enumerate(s.numbers)}

    def whole(path: str) -> str:
        path = plain_path(path, root)
        head = next((head for head in heads(path) if head in numbers), None)
        return path if head is None else numbers[head] + path.removeprefix(head)

    found = module_stages(captured, stage_of)
    known = [ModuleRun(whole(run.path), run.stage, run.mixes) for run in found.runs]
    weights = {whole(name): stages for name, stages in found.weights.items()}
    pieces = list(dict.fromkeys(zip(graph.labels, stage_of_piece, strict=True)))
    again = tuple(map(whole, found.called_again))
    return ModuleStages(tuple(_with_blocks(known, pieces, shortened)), weights, again)


def _with_blocks(
    known: Sequence[ModuleRun], pieces: Sequence[tuple[str, int]], shortened: Sequence[Shortened]
) -> list[ModuleRun]:
    """Return runs with those of the blocks that were left out, each behind the block before it."""
    found = list(known)
    for dropped in shortened:
        there = {f"{dropped.path}.{number}" for number in dropped.numbers}
        for label, stage in pieces:
            holder, _, number = label.rpartition(".")
            if holder == dropped.path and label not in there:
                before = f"{holder}.{int(number) - 1}"
                place = max(i for i, run in enumerate(found) if before in heads(run.path) or run.path == label)
                found.insert(place + 1, ModuleRun(label, stage))
    return found
