"""Compile stages, each distinct one once: stages with equal keys (see `stage_key`) share one compiled function.

Before: twelve stages, the first with the embedding, the last with the head, ten of two layers each.
After: three compiled functions; stages 1 to 10 share one, which is called with the weights of each.

A compiled function keeps nothing of the stage that it was made for: weights are arguments, and what it saves for a
backward belongs to the call. Where this does not hold (CUDA graphs, frozen weights) no code is shared.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from fx_partition.passes.capture.fake_tensors import no_new_guards, shape_env_of

from .boundary_strides import Crossings
from .dedup_compile import compile_deduplicated, first_with_same_key
from .graph_context import GraphContext
from .graph_edits import retarget
from .layout_guard import LayoutGuard
from .stage import Stage
from .stage_inputs import stage_inputs
from .stage_key import stage_key
from .torch_internals import binds_addresses, compile_part, training_patches


@dataclass(frozen=True)
class Lowered:
    """Compiled stages.

    Attributes:
        stages: the stages.
        compiled: the code of each stage: a function of ``stage.partition.inputs`` that returns
            ``stage.partition.outputs``.
        code: for each stage the index of the first stage with the same code.
        inputs: the fake inputs that each stage is compiled for.
        crossings: the values that cross the boundaries of the graph, with their strides.
    """

    stages: Sequence[Stage]
    compiled: list[Callable[..., Any]]
    code: list[int]
    inputs: list[list[Any]]
    crossings: Crossings

    def install(self, put: Callable[[Stage, Callable[..., Any]], None]) -> None:
        """Put the code of each stage where it is called from, behind a guard of the layouts of its results.

        Args:
            put: puts the code of one stage; it is called again with the code alone once the guard holds for all sizes.
        """
        for stage, function, takes in zip(self.stages, self.compiled, self.inputs, strict=True):
            outputs = stage.partition.outputs
            layouts, makes = self.crossings.layouts(outputs), [self.crossings.value(node) for node in outputs]
            unguarded = functools.partial(put, stage, function)
            if any(layout for _, layout in layouts):
                put(stage, LayoutGuard(function, stage.index, layouts, takes, makes, unguarded))
            else:
                unguarded()

    @property
    def first_of_kind(self) -> list[int]:
        """The positions of the stages that were compiled, ascending."""
        return list(dict.fromkeys(self.code))


def lower(context: GraphContext, stages: Sequence[Stage], *, graph: Sequence[Stage] | None = None) -> Lowered:
    """Compile stages with inductor, with a progress bar on a terminal.

    Args:
        context: the graph that the stages are of.
        stages: the stages to compile, in order.
        graph: all stages of the graph; left out: ``stages`` are all.

    Raises:
        Exception: of any kind, from inductor.

    Example::

        >>> lowered = lower(context, stages)      # doctest: +SKIP
        >>> lowered.code                          # doctest: +SKIP
        [0, 1, 1, 1, 4]
    """
    graph = graph or stages
    real = context.real
    crossings = Crossings([stage.partition for stage in graph], keeps_views=True)
    all_inputs: dict[int, list[Any]] = {}
    for stage in graph:
        all_inputs[stage.index] = stage_inputs(stage, real, crossings)
        crossings.settle(_module(stage), stage.partition.inputs, all_inputs[stage.index], stage.partition.outputs)
    inputs = [all_inputs[stage.index] for stage in stages]
    keys: Sequence[Hashable] = range(len(stages))
    if not binds_addresses(context.patches):
        keys = [_key(stage, takes, crossings) for stage, takes in zip(stages, inputs, strict=True)]

    def compile_stage(index: int) -> Callable[..., Any]:
        stage = stages[index]
        module = copy.deepcopy(stage.partition.module)  # inductor owns and changes its graph
        retarget(module, stage.boundaries.home, stage.device)
        crossings.promise(module, stage.partition.outputs)
        results = _results(stage, crossings)
        with no_new_guards(shape_env_of(results)):  # looking at strides must not specialise the sizes
            patches = training_patches(results, context.patches)
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # AOTAutograd leaves the mode that the stage ends in
            return compile_part(module, inputs[index], patches)

    code = first_with_same_key(keys)
    return Lowered(stages, compile_deduplicated(code, compile_stage, "l2partition"), code, inputs, crossings)


def _module(stage: Stage) -> torch.fx.GraphModule:
    """Return the graph of a stage on its device."""
    if stage.device.type == stage.boundaries.home.type == "cpu":  # retargeting would change nothing
        return stage.partition.module
    module = copy.deepcopy(stage.partition.module)
    retarget(module, stage.boundaries.home, stage.device)
    return module


def _key(stage: Stage, inputs: Sequence[Any], crossings: Crossings) -> Hashable:
    layouts = tuple(layout for _, layout in crossings.layouts(stage.partition.outputs))
    return stage.device, layouts, stage_key(stage.partition.module, inputs, _results(stage, crossings))


def _results(stage: Stage, crossings: Crossings) -> list[Any]:
    return [crossings.value(node) for node in stage.partition.outputs]
