"""What a plan says besides its boundaries: symbols, devices, copies, oversize atoms, and operators without a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

from ..capture.captured_graph import CapturedGraph
from ..capture.symbolic_sizes import Symbols
from ..plan.module_runs import module_stages
from ..plan.plan import Plan
from ..plan.records import Oversize
from ..plan.request import TIMED
from .case import Case, Fault
from .figures import figures


def symbol_faults(plan: Plan, right: Symbols) -> Iterator[Fault]:
    """Yield what is wrong with the symbols of a plan, and with its binding.

    The number that a symbol had when the graph was traced may be another, as the binding has one for each of these.
    """
    mine = {symbol.name: symbol for symbol in [*plan.symbols.hints, *plan.symbols.unbacked]}
    its = {symbol.name: symbol for symbol in [*right.hints, *right.unbacked]}
    for name in mine.keys() ^ its.keys():
        yield Fault(f"symbols.{name}", "it is in the plan alone" if name in mine else "the plan does not have it")
    for name in sorted(mine.keys() & its.keys()):
        if mine[name] != its[name]:
            yield Fault(f"symbols.{name}.assumptions", "they are not those of the graph")
            continue
        symbol = its[name]
        if (symbol in plan.symbols.hints) != (symbol in right.hints):
            yield Fault(f"symbols.{name}.hint", "whether the trace knew its number is otherwise")
        if plan.symbols.unbacked.get(symbol) != right.unbacked.get(symbol):
            yield Fault(f"symbols.{name}.bound", f"the graph allows {right.unbacked.get(symbol)}")
        dims = [sorted(dim for dim, its in found.dims.items() if its == symbol) for found in (plan.symbols, right)]
        if dims[0] != dims[1]:
            yield Fault(f"symbols.{name}.names", f"they are {', '.join(dims[0])}, and must be {', '.join(dims[1])}")
    for name in plan.bindings.keys() - its.keys():
        yield Fault(f"bindings.{name}", "no symbol has this name")
    for symbol, hint in right.hints.items():
        if symbol.name not in plan.bindings:
            yield Fault("bindings", f"there is none for {symbol.name}")
        elif plan.bindings[symbol.name] == 0 != hint:
            yield Fault(f"bindings.{symbol.name}", f"it is 0, and the trace had {hint}")


def device_faults(plan: Plan) -> Iterator[Fault]:
    """Yield what is wrong with devices, budgets and the places of partitions among them."""
    budgets = plan.device_budgets
    if budgets and (len(budgets) != plan.num_devices or len(set(budgets)) == 1):
        yield Fault("device_budgets", f"they must differ, and be {plan.num_devices}")
    if budgets and plan.budget_bytes != max(budgets):
        yield Fault("budget_bytes", f"it is {plan.budget_bytes}, and the largest of device_budgets {max(budgets)}")
    for place, budget in enumerate(budgets):
        if budget < 1:
            yield Fault(f"device_budgets[{place}]", "it is 0, which leaves no memory")
    if plan.budget_is_smallest and (budgets or not plan.num_devices):
        yield Fault("budget_is_smallest", "it is for a number of devices, and no budget of theirs")
    if plan.devices and len(plan.devices) != plan.num_devices:
        yield Fault("num_devices", f"it is {plan.num_devices}, and devices names {len(plan.devices)}")
    slot = -1
    for place, partition in enumerate(plan.partitions):
        path = f"partitions[{place}]"
        if partition.slot <= slot if budgets or plan.follows_weights else partition.slot != place:
            yield Fault(f"{path}.slot", f"it is {partition.slot}, behind {slot}")
        slot = partition.slot
        budget = budgets[slot % len(budgets)] if budgets else plan.budget_bytes
        if partition.budget_bytes != budget:
            says = f"device_budgets[{slot % len(budgets)}]" if budgets else "budget_bytes"
            why = f"it is {partition.budget_bytes}, and for {path}.slot = {slot} {says} is {budget}"
            yield Fault(f"{path}.budget_bytes", why)
        device = plan.devices[slot % len(plan.devices)] if plan.devices else ""
        if partition.device != device:
            yield Fault(f"{path}.device", f"it is {partition.device!r}, and devices says {device!r}")


def copy_faults(plan: Plan) -> Iterator[Fault]:
    """Yield what is wrong with the devices that hold copies: each goes to the partition with the most bytes a copy."""
    if not any(partition.replicas for partition in plan.partitions):
        return
    if not plan.num_devices:
        yield Fault("num_devices", "copies are on further devices, and there are none")
        return
    budgets = plan.device_budgets or (plan.budget_bytes,)
    taken = {partition.slot % plan.num_devices for partition in plan.partitions}
    right: list[list[int]] = [[] for _ in plan.partitions]
    for device in (d for d in range(plan.num_devices) if d not in taken):
        sizes = [(p.total_bytes / (1 + len(right[p.index])), -p.index) for p in plan.partitions
                 if p.total_bytes <= budgets[device % len(budgets)]]  # fmt: skip
        if sizes:
            right[-max(sizes)[1]].append(device)
    for place, (partition, found) in enumerate(zip(plan.partitions, right, strict=True)):
        if list(partition.replicas) != found:
            why = f"they are {list(partition.replicas)}, and with num_devices={plan.num_devices} must be {found}"
            yield Fault(f"partitions[{place}].replicas", why)


def operator_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the operators that a plan names as unknown or estimated."""
    unknown = dict.fromkeys(name for t in case.order for name in case.reading.runs[t].unknown)
    pairs = (("unknown_workspace", case.plan.unknown_workspace, unknown),
             ("estimated_workspace", case.plan.estimated_workspace, case.sizes.estimated))  # fmt: skip
    for path, found, right in pairs:
        if sorted(found) != sorted(right):
            yield Fault(path, f"it names {', '.join(found) or 'none'}, and must name {', '.join(right) or 'none'}")


def oversize_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the atoms that a plan says are larger than the budget."""
    right = [_oversize(case, a) for a, size in enumerate(case.stretches.alone) if size > case.plan.budget_bytes]
    found = case.plan.oversize
    if len(found) != len(right):
        yield Fault("oversize", f"they are {len(found)}, and {len(right)} atoms exceed the budget {case.where}")
        return
    for place, (mine, its) in enumerate(zip(found, right, strict=True)):
        for name, wanted in its.items():
            if getattr(mine, name) != wanted:
                yield Fault(f"oversize[{place}].{name}", f"it is {getattr(mine, name)}, and must be {wanted}")


def _oversize(case: Case, atom: int) -> dict[str, Any]:
    """All of an `Oversize` but why it was not sliced, which is words."""
    first, end = case.starts[atom], case.starts[atom + 1]
    held, ledger = figures(case.ledger, first, end), case.ledger
    inputs = sum(size for memory, size in held.held if ledger.made_at[memory] < first)
    found = Oversize(
        nodes=tuple(ledger.names[first:end]),
        weight_bytes=held.weight_bytes + held.state_bytes,
        input_bytes=inputs,
        output_bytes=held.activation_bytes - inputs,
        workspace_bytes=held.workspace_bytes,
        total_bytes=held.total_bytes,
    )
    return {name: value for name, value in vars(found).items() if name != "why_whole"}


def word_faults(plan: Plan) -> Iterator[Fault]:
    """Yield what is wrong with a plan's note: one by time says so, and by which device."""
    if plan.objective in TIMED and plan.partitions and "by the record of" not in plan.note:
        yield Fault("objective", "a plan by time says in note by the record of which device")


def module_faults(plan: Plan, captured: CapturedGraph) -> Iterator[Fault]:
    """Yield what is wrong with the partitions of modules and weights; a plan of an earlier release has none."""
    right = module_stages(captured, plan.partition_of)
    found = plan.modules
    if not found.runs:
        return
    if len(found.runs) != len(right.runs):
        yield Fault("modules.runs", f"they are {len(found.runs)}, and must be {len(right.runs)}")
        return
    for row, (mine, its) in enumerate(zip(found.runs, right.runs, strict=True)):
        for place, (a, b) in enumerate(zip(astuple(mine), astuple(its), strict=True)):
            if a != b:
                yield Fault(f"modules.runs[{row}][{place}]", f"it is {a!r}, and must be {b!r}")
    for name in sorted(found.weights.keys() | right.weights.keys()):
        readers, wanted = found.weights.get(name), right.weights.get(name)
        if readers != wanted:
            yield Fault(f"modules.weights.{name}", f"it is read by {readers}, and must be by {wanted}")
    if found.called_again != right.called_again:
        yield Fault("modules.called_again", f"it is {found.called_again}, and must be {right.called_again}")


def partition_faults(case: Case, figured: Sequence[str]) -> Iterator[Fault]:
    """Yield what is wrong with the figures of each partition.

    Args:
        figured: names of fields that `figures` knows.
    """
    bound = ", ".join(f"bindings.{name}={number}" for name, number in case.plan.bindings.items())
    options = [f"footprint={case.plan.footprint}", f"memory={case.plan.memory}"]
    if case.plan.sessions > 1:
        options.append(f"sessions={case.plan.sessions}")
    measure = f"by {', '.join(options)}" + (f" for {bound}" if bound else "")
    for place, (partition, right) in enumerate(zip(case.plan.partitions, case.figures, strict=True)):
        path = f"partitions[{place}]"
        for name in figured:
            mine, its = getattr(partition, name), getattr(right, name)
            if name in ("inputs", "outputs"):
                mine, its = tuple(sorted(mine)), tuple(sorted(its))
            if mine != its:
                yield Fault(f"{path}.{name}", f"it is {_short(mine)}, and {measure} the model has {_short(its)}")
        spill = max(0, partition.total_bytes - partition.budget_bytes)
        if partition.spill_bytes != spill:
            yield Fault(f"{path}.spill_bytes", f"it is {partition.spill_bytes}, and must be {spill}")
        runs = [case.reading.runs[t] for t in case.order[case.ends[place] : case.ends[place + 1]]]
        for name, run in (("first", runs[0]), ("last", runs[-1])):
            wanted = run.path or run.node.name
            if getattr(partition, name) != wanted:
                yield Fault(f"{path}.{name}", f"it is {getattr(partition, name)!r}, and must be {wanted!r}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:160]} ... {text[-20:]}"
