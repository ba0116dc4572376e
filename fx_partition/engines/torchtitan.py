"""torchtitan: the modules of each part, its ``parallelism.pipeline_parallel_module_fqns_per_model_part``.

A part is a copy of the model without the children, and the members of its lists, that the part does not name.
"""

from __future__ import annotations

from collections.abc import Sequence

from fx_partition.common.errors import PartitionError

from .module_stages import ModuleStages
from .refusals import cut, listed, refuse_cut_steps

NAME = "torchtitan"


def modules_per_part(stages: ModuleStages, devices: Sequence[int | str]) -> list[list[str]]:
    """Return the names of each part's modules: children of the model, and members of those that are lists.

    A module without weights that runs in several parts is in each.

    Raises:
        PartitionError: a child or a member is cut, or several parts would train a weight of their own in place of one.

    Example: ``[["tok_embeddings", "layers.0"], ["layers.1", "norm", "output"]]``.
    """
    refuse_cut_steps(NAME, stages)
    for name, readers in stages.weights.items():
        if len(readers) > 1:
            raise PartitionError(
                f"stages {listed(readers)} read {name!r}, and each part of {NAME} would train its own copy; untie it, "
                "or train with fx_partition.to_pipeline_stages, which adds up the gradients of the copies"
            )
    parts: list[list[str]] = [[] for _ in devices]
    for child in stages.children.get("", ()):
        members = stages.children.get(child, ())
        is_list = bool(members) and all(member.rpartition(".")[2].isdecimal() for member in members)
        for path in members if is_list and not stages.own_runs(child) else [child]:
            found = stages.stages_of[path]
            if len(found) > 1 and (path in stages.children or stages.has_weights(path)):
                raise cut(NAME, path, found)
            for stage in sorted(found):
                parts[stage].append(path)
    _add_children_without_steps(stages, parts)
    return parts


def _add_children_without_steps(stages: ModuleStages, parts: list[list[str]]) -> None:
    """Add a child to the part that reads its weights, where no step is the child's own."""
    for name, readers in stages.weights.items():
        child, _, rest = name.partition(".")
        if rest and readers and child not in stages.stages_of and child not in parts[readers[0]]:
            parts[readers[0]].append(child)
