"""The modules of a model, each with the stage on which it runs: all that an engine is told of a plan.

Example: a model with an embedding, two blocks and a head, cut between the blocks::

    runs:    ("embed", 0), ("blocks.0", 0), ("blocks.1", 1), ("head", 1)
    weights: "unused.weight" of no stage
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fx_partition.common.module_paths import heads


@dataclass(frozen=True)
class ModuleRun:
    """Steps of one module that follow one another on one stage.

    Attributes:
        path: the module's path, as in ``named_modules``; "" for the model itself.
        stage: the number of the stage.
        mixes: the first step that works on tensors of two devices if only the inputs of modules are moved from device
            to device; "" if there is none. It is a step of a module that is itself divided among stages.
    """

    path: str
    stage: int
    mixes: str = ""


@dataclass(frozen=True)
class ModuleStages:
    """The stages of a model's modules.

    Attributes:
        runs: in the order of the trace.
        weights: for each parameter and buffer that does not simply go with a module the stages that read it: those that
            no stage reads, those that several read (tied weights), and those of modules that are divided.
        called_again: the modules that are called more than once.
    """

    runs: tuple[ModuleRun, ...] = ()
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    called_again: tuple[str, ...] = ()

    @cached_property
    def stages_of(self) -> Mapping[str, frozenset[int]]:
        """For each module that has steps, or whose children have, the stages on which these run; "" is the model."""
        found: dict[str, set[int]] = {}
        for run in self.runs:
            for path in heads(run.path):
                found.setdefault(path, set()).add(run.stage)
        return {path: frozenset(stages) for path, stages in found.items()}

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The children of each module, by path, in the order in which they first run."""
        found: dict[str, dict[str, None]] = {}
        for path in self.stages_of:
            if path:
                found.setdefault(path.rpartition(".")[0], {})[path] = None
        return {path: tuple(names) for path, names in found.items()}

    @cached_property
    def reach_of(self) -> Mapping[str, tuple[int, int]]:
        """For each module of ``stages_of`` the places of its first and its last run, its children's among them."""
        found: dict[str, tuple[int, int]] = {}
        for place, run in enumerate(self.runs):
            for path in heads(run.path):
                found[path] = (found.get(path, (place, place))[0], place)
        return found

    def own_runs(self, path: str) -> list[ModuleRun]:
        """Return the runs of a module's own steps, without those of its children."""
        return [run for run in self.runs if run.path == path]

    def has_weights(self, path: str) -> bool:
        """Return whether ``weights`` names one of a module or of its children."""
        return any(path in heads(name) for name in self.weights)


def list_member(path: str) -> str:
    """Return the outermost member of a list of modules that holds a module; "" if there is none.

    Example::

        >>> list_member("model.layers.3.mlp.experts.0"), list_member("model.norm")
        ('model.layers.3', '')
    """
    return next((head for head in heads(path) if head.rpartition(".")[2].isdecimal()), "")
