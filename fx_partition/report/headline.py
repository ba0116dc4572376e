"""The first sentences of a report: how many devices, of what size, and why; what does not fit comes first."""

from __future__ import annotations

import sys
from collections import Counter

from fx_partition.passes.plan import Plan
from fx_partition.passes.sizes import format_bytes

from .document import code, count


def has_budget(plan: Plan) -> bool:
    """Whether a budget was set; the backend plans with ``sys.maxsize`` where none was."""
    return plan.budget_bytes != sys.maxsize


def percent(part: int, whole: int) -> str:
    """``percent(797696, 1048576) == "76.1%"``."""
    return f"{100 * part / whole:.1f}%"


def headline(plan: Plan) -> str:
    """The plan in one to three sentences.

    Example: "Needs 3 devices of 1 MiB: it holds 2.03 MiB, and the fullest device 779 KiB (74.3%). ..."
    """
    if not plan.partitions:
        return "Nothing to place: the graph has no operators."
    if not has_budget(plan):
        return (
            f"No budget was set, so nothing is cut: one partition of {format_bytes(plan.max_bytes)}. "
            f"Set cache_bytes to the on-chip bytes of one device to see how many devices the model needs."
        )
    if plan.num_partitions < plan.certificate.min_partitions:
        return _short_of_devices(plan)
    if plan.spill_bytes:
        return _does_not_fit(plan)
    return " ".join(filter(None, [_fits(plan), _in_turns(plan)]))


def _fits(plan: Plan) -> str:
    budget, fullest = format_bytes(plan.budget_bytes), format_bytes(plan.max_bytes)
    share = percent(plan.max_bytes, plan.budget_bytes)
    if plan.num_partitions == 1:
        left = format_bytes(plan.budget_bytes - plan.max_bytes)
        return f"Fits one device of {budget}: it holds {fullest} ({share}), {left} stay free."
    total = format_bytes(sum(p.total_bytes for p in plan.partitions))
    streamed = "" if _in_turns(plan) else "Nothing is streamed from off-chip; "
    return (
        f"Needs {count(plan.num_partitions, 'device')} of {budget}: it holds {total} in all, and the fullest "
        f"device {fullest} ({share}). {_fewer(plan)} {streamed}"
        f"{format_bytes(plan.cut_bytes)} cross between devices each call."
    )


def _fewer(plan: Plan) -> str:
    """Why fewer devices do not do, which the fit of all of the model into the sum of them may seem to deny."""
    runs = plan.certificate.witnesses
    run = f"{code(runs[0].first)} .. {code(runs[0].rejected)} hold {format_bytes(runs[0].bytes)} together"
    if len(runs) == 1:
        return f"One cannot hold it: {run}."
    others = count(len(runs) - 1, "more run")
    return f"{len(runs)} cannot hold it: {run}, too much for one; {others} like it below."


def _in_turns(plan: Plan) -> str:
    """Where partitions share a device, it holds one of them at a time."""
    turns = Counter(p.device for p in plan.partitions)
    if not plan.devices or max(turns.values()) == 1:
        return ""
    device, most = turns.most_common(1)[0]
    held = sum(p.weight_bytes + p.state_bytes for p in plan.partitions if p.device == device)
    text = (
        f"Only {count(len(turns), 'device')} run it, in turns: {device} has {most} partitions with "
        f"{format_bytes(held)} of weights and state"
    )
    if held <= plan.budget_bytes:
        return f"{text}."
    return f"{text}, more than its {format_bytes(plan.budget_bytes)}, and reloads them from off-chip each call."


def _short_of_devices(plan: Plan) -> str:
    budget, given = format_bytes(plan.budget_bytes), count(plan.num_partitions, "device")
    return (
        f"Does not fit the {given} given: it needs {plan.certificate.min_partitions} of {budget}. Spread over {given}, "
        f"{format_bytes(plan.spill_bytes)} are beyond on-chip memory and are streamed from off-chip each call."
    )


def _does_not_fit(plan: Plan) -> str:
    budget = format_bytes(plan.budget_bytes)
    atoms = count(len(plan.oversize), "operator")
    verb = "is" if len(plan.oversize) == 1 else "are"
    text = (
        f"Does not fit devices of {budget} whatever their number: {atoms} {verb} larger by "
        f"{'itself' if verb == 'is' else 'themselves'}. On {count(plan.num_partitions, 'device')}, "
        f"{format_bytes(plan.spill_bytes)} are streamed from off-chip each call."
    )
    return " ".join(filter(None, [text, _in_turns(plan)]))
