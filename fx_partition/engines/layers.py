"""Count the layers of each stage, for engines that take numbers of decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

from fx_partition.common.errors import PartitionError
from fx_partition.common.module_paths import heads

from .module_stages import ModuleStages, list_member
from .refusals import cut, named, refuse_turns


def layer_counts(engine: str, stages: ModuleStages, devices: Sequence[int | str]) -> list[int]:
    """Return how many members of the model's one list of layers each stage has.

    What runs before the layers must be on the first stage, and what runs behind them on the last, as the engine has it.

    Raises:
        PartitionError: a layer is cut, the model has no list of layers or several, or a module that is no layer is on
            another stage than the engine puts it on; the message names the module.

    Example: 28 layers on three stages are ``[10, 10, 8]``.
    """
    refuse_turns(engine, devices)
    layers = _layers(engine, stages)
    order = [_only(engine, path, stages) for path in layers]
    if order != sorted(order):
        path = next(path for path, a, b in zip(layers[1:], order, order[1:], strict=False) if b < a)
        raise PartitionError(f"{named(path)} runs on an earlier stage than the layer before it; {engine} has none such")
    _refuse_elsewhere(engine, stages, set(layers), len(devices) - 1)
    return [order.count(stage) for stage in range(len(devices))]


def partition_text(engine: str, stages: ModuleStages, devices: Sequence[int | str]) -> str:
    """Return the numbers of layers, separated by commas.

    Raises:
        PartitionError: as `layer_counts`, or a stage has no layer.
    """
    counts = layer_counts(engine, stages, devices)
    if 0 in counts:
        raise PartitionError(
            f"stage {counts.index(0)} has no layer, and a stage of {engine} has at least one; plan with fewer devices, "
            "or with a larger budget"
        )
    return ",".join(map(str, counts))


def _layers(engine: str, stages: ModuleStages) -> list[str]:
    """Return the paths of the layers by number."""
    members = dict.fromkeys(member for run in stages.runs if "." in (member := list_member(run.path)))
    lists = list(dict.fromkeys(member.rpartition(".")[0] for member in members))
    if not lists:
        raise PartitionError(f"{engine} counts decoder layers, and no list of modules of this model has steps")
    if len(lists) > 1:
        raise PartitionError(
            f"{engine} counts the layers of one list, and this model has {', '.join(map(repr, lists))}; plan the part "
            "that holds the decoder layers alone"
        )
    numbers = sorted(int(member.rpartition(".")[2]) for member in members)
    for place, number in enumerate(numbers):
        if place != number:
            raise PartitionError(f"the layer '{lists[0]}.{place}' has no steps, and {engine} counts it with the others")
    return [f"{lists[0]}.{number}" for number in numbers]


def _only(engine: str, layer: str, stages: ModuleStages) -> int:
    found = stages.stages_of[layer]
    if len(found) > 1:
        raise cut(engine, layer, found)
    return next(iter(found))


def _refuse_elsewhere(engine: str, stages: ModuleStages, layers: set[str], last: int) -> None:
    """Raise an error if a module before the layers is not on the first stage, or one behind them not on the last.

    Steps of the modules that hold the layers count nowhere: the engine computes them in its own way.
    """
    holders = {head for layer in layers for head in heads(layer)} - layers
    inside = [place for place, run in enumerate(stages.runs) if list_member(run.path) in layers]
    for place, run in enumerate(stages.runs):
        if run.path in holders or list_member(run.path) in layers:
            continue
        if inside[0] < place < inside[-1]:
            raise PartitionError(
                f"{named(run.path)} runs between the layers, and {engine} places what is before and behind them alone"
            )
        wanted, where = (0, "first") if place < inside[0] else (last, "last")
        if run.stage != wanted:
            raise PartitionError(
                f"{named(run.path)} is on stage {run.stage}, and {engine} puts it on the {where}, {wanted}; move the "
                "boundary into the layers: plan with fewer devices, or with a larger budget"
            )
