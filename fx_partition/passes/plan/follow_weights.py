"""Leave weights on the devices where earlier graphs of the same model have them.

A model has several graphs: one for its prompt and one for each further token, or one for each of several sizes. Planned
each by itself, they may have boundaries at different layers, and then a device holds weights that another has already.

Terms
-----
place
    A device whose stages read a weight in a graph that was planned before.
elsewhere
    A weight that a plan reads on a device that is none of its places.

Before (weights ``w0 .. w3`` of one size; the first graph, whose values are large, has been planned)::

    first graph    cuda:0: w0       cuda:1: w1 w2 w3
    second graph   cuda:0: w0 w1    cuda:1: w2 w3            w1 is on both devices

After::

    second graph   cuda:0: w0       cuda:1: w1 w2 w3

Such a plan is taken if nothing in it is elsewhere and it spills no more bytes than the graph's own plan. Where no
budget was given, its largest partition may be larger than that of the own plan by the bytes that the own plan has
elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fx_partition.common.errors import PartitionWarning
from fx_partition.common.units import format_bytes

from ..partitioner.allowed_devices import Allowed, overfill_allowed, spread_allowed
from ..partitioner.interval_footprint import interval
from .fused_refinement import RefinedPlacement, unproved
from .placement import Placement
from .problem import Problem
from .request import TIMED, Request

_FOLLOWS = "The weights stay on the devices on which earlier graphs of the model have them."


@dataclass(frozen=True)
class WeightPlaces:
    """Where the weights of a graph are already.

    Attributes:
        places: for weights by the names of their nodes, the devices whose stages read them in earlier graphs.
        originals: for the same weights the devices of the model's own tensors, which need no copy.
    """

    places: Mapping[str, frozenset[str]]
    originals: Mapping[str, str]


@dataclass(frozen=True)
class PlacedProblem:
    """A placement, the problem whose order it is in, and whether it leaves the weights where they are."""

    problem: Problem
    refined: RefinedPlacement
    follows_weights: bool = False


def follow_weights(traced: Problem, own: PlacedProblem, request: Request, held: WeightPlaces) -> PlacedProblem:
    """Return a placement with all weights where they are, or the graph's own with a note and, for copies, a warning.

    Args:
        traced: the problem in the order of the trace.
        own: the placement that was made without regard to where weights are.
        request: names the devices.
        held: where the weights are.
    """
    moved, copied = _Weights(own.problem, held).elsewhere(own.refined, request.devices)
    if not moved:
        return own
    if request.objective in TIMED:
        return _noted(own, "its boundaries are placed by time", moved, copied)
    for problem in [traced] if own.problem is traced else [own.problem, traced]:
        found = _placed(problem, own.refined, request, held)
        if found is not None and _is_as_good(found, own.refined, request, moved):
            return PlacedProblem(problem, found, follows_weights=True)
    way = "raise cache_bytes" if request.budget else "say with cache_bytes how much a device may hold"
    way = f"; call the model with its largest sizes first, or {way}, to hold them once"
    return _noted(own, "no plan with them there fits the devices as well", moved, copied, way)


def _noted(own: PlacedProblem, why: str, moved: int, copied: int, way: str = "") -> PlacedProblem:
    """Return the own placement with a note; warn if it makes copies of weights that other devices have copies of.

    Args:
        moved, copied: as `_Weights.elsewhere` returns them.
        way: what the user can do about the copies, the end of the warning's sentence.
    """
    text = f"{format_bytes(moved)} of weights are on other devices than in earlier graphs of the model, as {why}"
    if copied:
        text += f": {format_bytes(copied)} are held once more"
        warnings.warn(f"{text}{way}", PartitionWarning, stacklevel=2)
    placement = own.refined.placement
    note = " ".join(filter(None, [placement.note, f"{text}."]))
    return replace(own, refined=own.refined._replace(placement=replace(placement, note=note)))


def _placed(
    problem: Problem, own: RefinedPlacement, request: Request, held: WeightPlaces
) -> RefinedPlacement | None:
    """Return the best placement with nothing elsewhere; None if there is none, or none that spills so little."""
    chain, devices = problem.chain, request.devices
    allowed = _Weights(problem, held).allowed(devices)
    rounds = max(own.placement.slots) // len(devices) + 1
    if request.on_shortage == "wrap":
        rounds = max(rounds, _rounds(allowed))
    allowed = [*allowed] * rounds
    if request.budget is None:
        runs = overfill_allowed(chain, [0] * len(allowed), allowed)
    else:
        budgets = list(request.budgets or [request.budget] * len(devices)) * rounds
        runs = spread_allowed(chain, budgets, allowed, request.slack)
        if runs is None and _spill(own, request):
            runs = overfill_allowed(chain, budgets, allowed)
    if runs is None:
        return None
    slots = [slot for slot, (first, end) in enumerate(pairwise(runs)) if first < end]
    boundaries = [0, *(runs[slot + 1] for slot in slots)]
    budget = own.placement.budget
    if request.budget is None:
        budget = max(_totals(RefinedPlacement(replace(own.placement, boundaries=boundaries), problem.model, chain)))
    proof = unproved(own.placement.certificate.min_partitions, request)
    placement = Placement(boundaries, slots, budget, proof, note=_FOLLOWS)
    return RefinedPlacement(placement, *problem.refined(boundaries))


def _rounds(allowed: Allowed) -> int:
    """Return how often devices must take turns for each atom to be where it is allowed; 0 if that is not possible."""
    end, turn, idle, size = 0, 0, 0, len(allowed[0])
    while end < size and idle < len(allowed):
        barred = np.flatnonzero(~allowed[turn % len(allowed)][end:])
        reached = end + int(barred[0]) if len(barred) else size
        idle = 0 if reached > end else idle + 1
        end, turn = reached, turn + 1
    return -(-turn // len(allowed)) if end == size else 0


def _is_as_good(found: RefinedPlacement, own: RefinedPlacement, request: Request, moved: int) -> bool:
    if request.budget is None:
        return max(_totals(found)) - max(_totals(own)) <= moved
    return _spill(found, request) <= _spill(own, request)


def _spill(refined: RefinedPlacement, request: Request) -> int:
    budgets = request.budgets or (refined.placement.budget,)
    sizes = zip(_totals(refined), refined.placement.slots, strict=True)
    return sum(max(0, total - budgets[slot % len(budgets)]) for total, slot in sizes)


def _totals(refined: RefinedPlacement) -> list[int]:
    """Return the bytes of each partition."""
    places: list[int] = refined.chain.atom_start[refined.placement.boundaries].tolist()
    return [interval(refined.chain, *part).total for part in pairwise(places)]


class _Weights:
    """The weights of a problem, by number, with the devices that have them."""

    def __init__(self, problem: Problem, held: WeightPlaces) -> None:
        self._problem, memory = problem, problem.model
        self._places: dict[int, set[str]] = {}
        self._originals: dict[int, str] = {}
        for name, places in held.places.items():
            if (number := memory.weight_of.get(name)) is None:
                continue  # no step is given it
            self._places.setdefault(number, set()).update(places)
            self._originals[number] = held.originals[name]
        # A stage writes state into the model's own tensor, so nothing that is written has a copy that stays.
        self._written = {memory.weight_of[name] for name in memory.written}

    def _read_by(self, first: int, end: int) -> set[int]:
        """Return the numbers of the weights with a place that the steps [first, end) are given."""
        steps = self._problem.model.steps[first:end]
        return {weight for step in steps for weight in (*step.weights, *step.given) if weight in self._places}

    def allowed(self, devices: Sequence[str]) -> Allowed:
        """Return for each device whether it may have each atom: all weights of the atom are on it already."""
        found = []
        for first, end in pairwise(self._problem.atoms.starts):
            places = [self._places[weight] for weight in self._read_by(first, end)]
            found.append([all(device in there for there in places) for device in devices])
        return list(np.array(found, dtype=np.bool_).T)

    def elsewhere(self, refined: RefinedPlacement, devices: Sequence[str]) -> tuple[int, int]:
        """Return the bytes of weights that a placement has elsewhere.

        Returns:
            All of them, and those that have to be copied although there is a copy on another device.
        """
        sizes = self._problem.chain.weight_bytes
        starts = self._problem.atoms.starts
        new = {
            (weight, device)
            for (first, end), slot in zip(pairwise(refined.placement.boundaries), refined.placement.slots, strict=True)
            for weight in self._read_by(starts[first], starts[end]) - self._written
            if (device := devices[slot % len(devices)]) not in self._places[weight]
        }
        copied = [w for w, device in new if device != self._originals[w] and self._places[w] != {self._originals[w]}]
        return sum(int(sizes[weight]) for weight, _ in new), sum(int(sizes[weight]) for weight in copied)
