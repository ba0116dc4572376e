"""Whether a plan can run a graph: each node once, what comes first first, and nothing torn apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..plan.plan import Plan
from .case import Fault
from .groups import Group, find_groups
from .order import Needs, find_needs, too_early
from .runs import Reading


def running_faults(
    reading: Reading, plan: Plan, needs: Needs | None = None, groups: Iterable[Group] | None = None
) -> list[Fault]:
    """Return why a plan cannot run a graph; no faults if it gives the graph's results, whatever its figures say.

    Linear in nodes and what they touch.

    Args:
        reading: of the graph that the plan cuts (`extract.planned_graph`).
        needs, groups: of that graph, if they are known.
    """
    if found := [*_numbering(plan), *_not_once(reading, plan)]:
        return found
    needs = needs or find_needs(reading)
    return [*_too_early(reading, plan, needs), *torn(reading, plan, find_groups(reading) if groups is None else groups)]


def places(reading: Reading, plan: Plan) -> dict[int, int]:
    """The step of a plan, by the place in the trace; each node that runs is in the plan once."""
    of_name = {run.node.name: t for t, run in enumerate(reading.runs)}
    order = (of_name[name] for partition in plan.partitions for name in partition.nodes)
    return {t: step for step, t in enumerate(order)}


def _numbering(plan: Plan) -> Iterator[Fault]:
    for place, partition in enumerate(plan.partitions):
        if partition.index != place:
            why = f"partition {partition.index} is the one at place {place}, so its index must be {place}"
            yield Fault(f"partitions[{place}].index", why, cannot_run=True)
        if not partition.nodes:
            yield Fault(f"partitions[{place}].nodes", f"partition {place} has no nodes", cannot_run=True)


def _not_once(reading: Reading, plan: Plan) -> Iterator[Fault]:
    names = {run.node.name for run in reading.runs}
    holder: dict[str, int] = {}
    for place, partition in enumerate(plan.partitions):
        path = f"partitions[{place}].nodes"
        for name in partition.nodes:
            if name not in names:
                why = f"partition {place} names {name}, which is not a node of this graph that runs"
                yield Fault(path, why, cannot_run=True)
            elif name in holder:
                why = f"{name} is in partition {holder[name]} and again in partition {place}"
                yield Fault(path, why, cannot_run=True)
            else:
                holder[name] = place
    missing = (run.node.name for run in reading.runs if run.node.name not in holder)
    yield from (Fault("partitions", f"{name} is in no partition", cannot_run=True) for name in missing)


def _too_early(reading: Reading, plan: Plan, needs: Needs) -> Iterator[Fault]:
    holder = {name: place for place, partition in enumerate(plan.partitions) for name in partition.nodes}
    for t, before in too_early(reading, needs, places(reading, plan)):
        name, other = (reading.runs[i].node.name for i in (t, before))
        why = f"{name} runs before {other}, which must run first"
        yield Fault(f"partitions[{holder[name]}].nodes", why, cannot_run=True)


def torn(reading: Reading, plan: Plan, groups: Iterable[Group]) -> Iterator[Fault]:
    """Yield a fault for each group that is in several partitions."""
    holder = {name: place for place, partition in enumerate(plan.partitions) for name in partition.nodes}
    for group in groups:
        members = [reading.runs[t].node.name for t in group.members]
        apart = next((name for name in members if holder[name] != holder[members[0]]), None)
        if apart is not None:
            why = f"{members[0]} and {apart} must be in one partition: {group.reason}"
            yield Fault(f"partitions[{holder[apart]}].nodes", why, cannot_run=True)


def atom_starts(steps: int, groups: Iterable[Group], place: dict[int, int]) -> list[int]:
    """Return the steps at which atoms begin, then the number of steps: no group reaches across one.

    Args:
        place: the step of each place in the trace.
    """
    reach = list(range(steps))  # the last step of the groups that begin at each
    for group in groups:
        found = [place[t] for t in group.members]
        first = min(found)
        reach[first] = max(reach[first], *found)
    starts = []
    until = -1
    for step, last in enumerate(reach):
        if step > until:
            starts.append(step)
        until = max(until, last)
    return [*starts, steps]
