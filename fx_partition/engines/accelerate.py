"""accelerate, and transformers' ``device_map=``: modules, parameters and buffers, each with its device.

A hook moves the inputs of each module in the map to the module's device; a step outside of these modules runs where its
inputs are. So a module in the map must be whole, and a step of a module that is divided must find all its tensors on
one device.
"""

from __future__ import annotations

from collections.abc import Sequence

from fx_partition.common.errors import PartitionError
from fx_partition.common.module_paths import heads

from .module_stages import ModuleStages, list_member
from .refusals import cut, listed, named, refuse_cut_steps

NAME = "accelerate"


def device_map(stages: ModuleStages, devices: Sequence[int | str]) -> dict[str, int | str]:
    """Return a device for each module that is as large as can be and whole, and for all weights outside of these.

    A module without weights that runs on several devices is left out: it runs where its inputs are.

    Raises:
        PartitionError: a module is cut.

    Example: ``{"embed": 0, "blocks.0": 0, "blocks.1": 1, "head": 1}``.
    """
    refuse_cut_steps(NAME, stages)
    placed: dict[str, int] = {}
    _place_modules("", stages, placed)
    _place_weights(stages, placed)
    return {path: devices[stage] for path, stage in placed.items()}


def _place_modules(path: str, stages: ModuleStages, placed: dict[str, int]) -> None:
    found = stages.stages_of[path]
    if len(found) == 1:
        placed[path] = next(iter(found))
        return
    own, children = stages.own_runs(path), stages.children.get(path, ())
    if not children:
        if stages.has_weights(path):
            raise PartitionError(
                f"stages {listed(found)} call {named(path)}, and {NAME} keeps a module on one device; plan "
                "with keep_together= for its callers, or split the model with fx_partition.split, which can share it"
            )
        return
    if own and list_member(path):
        raise cut(NAME, path, found)
    for run in own:
        if run.mixes:
            raise PartitionError(
                f"{run.mixes}, a step of {named(path)}, works on tensors of two devices where its modules are divided "
                f"among stages {listed(found)}, and {NAME} moves the inputs of modules alone; plan with "
                "keep_together= for this step and those that make what it reads"
            )
    for child in children:
        _place_modules(child, stages, placed)


def _place_weights(stages: ModuleStages, placed: dict[str, int]) -> None:
    """Place the weights that no module of the map holds: each by itself, or by the module without steps that holds it.

    Raises:
        PartitionError: several stages read a weight or a module's weights; or another than the first reads one that
            belongs to the model itself.
    """
    readers: dict[str, set[int]] = {}
    modules = set(placed)
    for name, read_by in stages.weights.items():
        if len(read_by) > 1:
            raise PartitionError(
                f"stages {listed(read_by)} read {name!r}, and {NAME} keeps a weight, tied or not, on one device; untie "
                "it, keep its readers together with keep_together=, or run fx_partition.split, which can share it"
            )
        if modules.isdisjoint(heads(name)):
            without_steps = next(head for head in heads(name) if head not in stages.stages_of)
            readers.setdefault(without_steps, set()).update(read_by)
    first = next(iter(placed.values()))
    for name, found in readers.items():
        if len(found) > 1:
            raise PartitionError(
                f"stages {listed(found)} read weights of {named(name)}, which has no steps, and {NAME} keeps a module "
                "on one device; keep the readers together with keep_together="
            )
        stage = next(iter(found), first)
        if "." not in name and name in stages.weights and stage != first:
            raise PartitionError(
                f"stage {stage} reads {name!r}, which belongs to the model itself, and {NAME} puts these on the first "
                "device; give the parameter a module of its own, or plan with keep_together= for its steps and the "
                "first stage's"
            )
        placed[name] = stage
