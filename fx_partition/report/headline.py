"""Write the first sentences of a report: the number of devices, their size, and why; what does not fit comes first."""

from __future__ import annotations

import math
from collections import Counter

from fx_partition.common.units import format_bytes
from fx_partition.passes.constraints.module_boundaries import NODES
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.request import DEVICE, TIMED

from .document import code, count


def is_short(plan: Plan) -> bool:
    """Return whether the devices do not hold the graph, so that some exceed their budgets."""
    used = plan.partitions[-1].slot + 1 if plan.device_budgets else plan.num_partitions
    return used < plan.certificate.min_partitions


def sizes(plan: Plan) -> str:
    """Return the size of one device: "6 MiB", or "4 MiB to 8 MiB" where devices differ."""
    least, most = min((plan.budget_bytes, *plan.device_budgets)), plan.budget_bytes
    return format_bytes(most) if least == most else f"{format_bytes(least)} to {format_bytes(most)}"


def percent(part: int, whole: int) -> str:
    """Return a share in percent: ``percent(797696, 1048576) == "76.1%"``; of a whole of 0, "0.0%" or "inf%"."""
    return f"{100 * _ratio(part, whole):.1f}%"


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.inf if part else 0.0


def headline(plan: Plan) -> str:
    """Return the plan in one to three sentences.

    Example: "Needs 3 devices of 1 MiB: it holds 2.03 MiB, and the fullest device 779 KiB (74.3%). ..."
    """
    if not plan.partitions:
        return plan.note or "Nothing to place: the graph has no operators."
    if not plan.has_budget:
        text = [
            f"No budget was set, so nothing is cut: one partition of {format_bytes(plan.max_bytes)}.",
            f"Set cache_bytes to the {'' if plan.memory == DEVICE else 'on-chip '}bytes of one device to see how many "
            "devices the model needs.",
        ]
    elif is_short(plan):
        text = [_short_of_devices(plan)]
    elif plan.spill_bytes:
        text = [_does_not_fit(plan)]
    else:
        text = [_smallest(plan), _fits(plan), _in_turns(plan), _copies(plan)]
    return " ".join(filter(None, [_guess(plan), *text, _sessions(plan), plan.note]))


def _guess(plan: Plan) -> str:
    """Return the guessed sizes that the figures depend on, as a sentence; "" if none is guessed."""
    sizes = " and ".join(f"{name} = {number}" for name, number in plan.assumed.items())
    return f"All of this is for {sizes}, a guess: the size is known only at run time and has no bound." if sizes else ""


def _sessions(plan: Plan) -> str:
    if plan.sessions == 1:
        return ""
    state = format_bytes(sum(partition.state_bytes for partition in plan.partitions))
    return f"The state is that of {count(plan.sessions, 'session')}: {state}."


def _smallest(plan: Plan) -> str:
    if not plan.budget_is_smallest:
        return ""
    there = " with the weights where they are" if plan.follows_weights else ""
    number = count(plan.num_devices, "device")
    return f"{format_bytes(plan.budget_bytes)} is the smallest size with which {number} do{there}."


def _copies(plan: Plan) -> str:
    """Return which partitions have copies on the devices that were left over, as a sentence."""
    copied = [f"{p.index} ({1 + len(p.replicas)} times)" for p in plan.partitions if p.replicas]
    return f"Devices that are left over hold copies of the largest partitions: {', '.join(copied)}." if copied else ""


def _fits(plan: Plan) -> str:
    full = max(plan.partitions, key=lambda p: _ratio(p.total_bytes, p.budget_bytes))
    budget, fullest = sizes(plan), format_bytes(full.total_bytes)
    share = percent(full.total_bytes, full.budget_bytes)
    if plan.num_partitions == 1:
        left = format_bytes(full.budget_bytes - full.total_bytes)
        return f"Fits one device of {budget}: it holds {fullest} ({share}), {left} stay free."
    total = format_bytes(sum(p.total_bytes for p in plan.partitions))
    fewer = f"{_fewer(plan)} " if plan.certificate.witnesses else ""
    streamed = "" if _in_turns(plan) or plan.memory == DEVICE else "Nothing is streamed from off-chip; "
    is_fewest = plan.objective not in TIMED or plan.num_partitions == plan.certificate.min_partitions
    verb = "Needs" if is_fewest and not plan.follows_weights else "Uses"
    return (
        f"{verb} {count(plan.num_partitions, 'device')} of {budget}: it holds {total} in all, and the fullest "
        f"device {fullest} ({share}). {fewer}{streamed}"
        f"{format_bytes(plan.cut_bytes)} cross between devices each call."
    )


def _fewer(plan: Plan) -> str:
    """Return why fewer devices do not suffice, even where the total would fit into their sum."""
    runs = plan.certificate.witnesses
    if plan.device_budgets:
        return "Fewer from the front of the list do not hold it."
    run = f"{code(runs[0].first)} .. {code(runs[0].rejected)} hold {format_bytes(runs[0].bytes)} together"
    if len(runs) == 1:
        return f"One cannot hold it: {run}."
    others = count(len(runs) - 1, "more run")
    return f"{len(runs)} cannot hold it: {run}, too much for one; {others} like it below."


def _in_turns(plan: Plan) -> str:
    """Return which device runs the most partitions in turn and what it reloads; "" if no partitions share a device."""
    turns = Counter(p.device for p in plan.partitions)
    if not plan.devices or max(turns.values()) == 1:
        return ""
    device, most = turns.most_common(1)[0]
    held = sum(p.weight_bytes + p.state_bytes for p in plan.partitions if p.device == device)
    text = (
        f"Only {count(len(turns), 'device')} run it, in turns: {device} has {most} partitions with "
        f"{format_bytes(held)} of weights and state"
    )
    budget = next(p.budget_bytes for p in plan.partitions if p.device == device)
    if held <= budget:
        return f"{text}."
    reloads = "" if plan.memory == DEVICE else ", and reloads them from off-chip each call"
    return f"{text}, more than its {format_bytes(budget)}{reloads}."


def _spilled(plan: Plan, where: str = "") -> str:
    """Return how many bytes do not fit, and what becomes of them, as the end of a sentence."""
    spilled = format_bytes(plan.spill_bytes)
    if plan.memory == DEVICE:
        return f"{spilled} are beyond the memory of the devices."
    return f"{spilled} are {where}streamed from off-chip each call."


def _short_of_devices(plan: Plan) -> str:
    budget, given = sizes(plan), count(plan.num_devices, "device")
    needs = "" if plan.device_budgets else f": it needs {plan.certificate.min_partitions} of {budget}"
    spilled = _spilled(plan, "beyond on-chip memory and are ")
    return f"Does not fit the {given} of {budget} given{needs}. Spread over {given}, {spilled}"


def _does_not_fit(plan: Plan) -> str:
    budget, number = sizes(plan), count(plan.num_partitions, "device")
    if not plan.oversize:  # only compiled code: its footprints are exact only once the boundaries are known
        return (
            f"No boundaries were found with which compiled code stays within devices of {budget}. On {number}, "
            f"{_spilled(plan)}"
        )
    atoms = count(len(plan.oversize), "operator" if plan.boundaries == NODES else "module")
    verb = "is" if len(plan.oversize) == 1 else "are"
    text = (
        f"Does not fit devices of {budget} whatever their number: {atoms} {verb} larger by "
        f"{'itself' if verb == 'is' else 'themselves'}. On {number}, {_spilled(plan)}"
    )
    return " ".join(filter(None, [text, _in_turns(plan)]))
