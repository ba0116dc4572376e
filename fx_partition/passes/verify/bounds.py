"""The certificate of a plan: its bounds are proved by its witnesses, and are as good as can be proved.

`certificate` says what witnesses prove. A witness names the first node of an atom and the last node of another; what is
between them in the plan's order holds more than is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..plan.records import Witness
from .case import Case, Fault
from .windows import farthest


def proof_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the bounds and the witnesses of a plan over devices of one size."""
    proof, budget, count = case.plan.certificate, case.plan.budget_bytes, len(case.plan.partitions)
    fewest = case.filled
    path = "certificate.min_partitions"
    if proof.min_partitions != len(fewest):
        yield Fault(path, f"it is {proof.min_partitions}, and the budget asks for {len(fewest)} {case.where}")
    if len(proof.witnesses) != max(proof.min_partitions - 1, 0):
        why = f"{len(proof.witnesses)} witnesses do not prove {proof.min_partitions} partitions"
        yield Fault("certificate.witnesses", why)
    yield from _independent(case, proof.witnesses, "certificate.witnesses", budget + 1)

    bound, largest = proof.max_bytes_lower_bound, case.largest(budget)
    path = "certificate.max_bytes_lower_bound"
    if bound > largest:
        yield Fault(path, f"it is {bound}, and the largest partition has {largest}")
    elif _suffices(case, bound - 1, count):
        yield Fault(path, f"it is {bound}, and {count} partitions need no more than {bound - 1} {case.where}")
    elif not _suffices(case, bound, count):
        yield Fault(path, f"it is {bound}, and {count} partitions need more {case.where}")
    yield from _maximum(case)


def _suffices(case: Case, limit: int, count: int) -> bool:
    """Whether so many partitions hold the atoms within a limit, those above the budget left out."""
    if limit < 0 or any(limit < size <= case.plan.budget_bytes for size in case.stretches.alone):
        return False
    return len(case.stretches.sweep(limit)) <= count


def _maximum(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the witnesses of the bound on the maximum."""
    proof, budget, path = case.plan.certificate, case.plan.budget_bytes, "certificate.max_witnesses"
    bound, witnesses = proof.max_bytes_lower_bound, proof.max_witnesses
    if bound == 0:
        if witnesses:
            yield Fault(path, "there is nothing to prove, and there are witnesses")
        return
    atoms = [_atoms(case, witness) for witness in witnesses]
    if len(witnesses) == 1 and atoms[0] is not None and atoms[0][0] == atoms[0][1]:
        size = case.stretches.alone[atoms[0][0]]
        if witnesses[0].bytes != size:
            yield Fault(f"{path}[0][2]", f"it is {witnesses[0].bytes}, and {witnesses[0].first} has {size}")
        if not bound <= size <= budget:
            yield Fault(f"{path}[0]", f"an atom of {size} bytes does not prove {bound} within {budget}")
    else:
        if len(witnesses) < len(case.plan.partitions):
            why = f"{len(witnesses)} witnesses do not prove a maximum of {len(case.plan.partitions)} partitions"
            yield Fault(path, why)
        yield from _independent(case, witnesses, path, bound)


def _atoms(case: Case, witness: Witness) -> tuple[int, int] | None:
    """The first and the last atom of a witness; None where its nodes are not at the edges of atoms."""
    first, last = (case.place.get(name, -2) for name in (witness.first, witness.rejected))
    begin, end = case.atom_at.get(first), case.atom_at.get(last + 1)
    return None if begin is None or end is None or end <= begin else (begin, end - 1)


def _misstated(witness: Witness, size: int, path: str) -> Iterator[Fault]:
    """Yield a fault if a witness names other bytes than its atoms have."""
    if size != witness.bytes:
        yield Fault(path, f"it is {witness.bytes}, and {witness.first} .. {witness.rejected} have {size}")


def _independent(case: Case, witnesses: Sequence[Witness], path: str, least: int) -> Iterator[Fault]:
    """Yield what is wrong with witnesses of two or more atoms and ``least`` bytes, of which no boundary cuts two."""
    free = 0
    for row, witness in enumerate(witnesses):
        atoms = _atoms(case, witness)
        if atoms is None or not free <= atoms[0] < atoms[1]:
            why = f"{witness.first} .. {witness.rejected} have no boundary of their own {case.where}"
            yield Fault(f"{path}[{row}]", why)
            continue
        free = atoms[1]
        size = case.stretches.footprint(atoms[0], atoms[1] + 1)
        yield from _misstated(witness, size, f"{path}[{row}][2]")
        if size < least:
            why = f"{witness.first} .. {witness.rejected} have {size} bytes, and {least} are needed"
            yield Fault(f"{path}[{row}]", why)


def spread_faults(case: Case) -> Iterator[Fault]:
    """Yield what is wrong with the bounds and witnesses of a plan over devices of different sizes, in an order."""
    plan, proof = case.plan, case.plan.certificate
    slots, budgets = case.slots, case.budgets
    widest = max(budgets)
    reach = farthest(case.stretches, budgets, widest)
    needed = len(reach) if reach and reach[-1] == case.stretches.count else len(budgets) + 1
    if proof.min_partitions != needed:
        why = f"it is {proof.min_partitions}, and {needed} devices are needed {case.where}"
        yield Fault("certificate.min_partitions", why)
    if len(proof.witnesses) != max(proof.min_partitions - 1, 0):
        why = f"{len(proof.witnesses)} witnesses do not prove {proof.min_partitions} devices"
        yield Fault("certificate.witnesses", why)
    yield from _in_order(case, proof.witnesses, "certificate.witnesses", budgets, widest)
    bound, path = proof.max_bytes_lower_bound, "certificate.max_bytes_lower_bound"
    if needed > len(budgets):
        if bound or proof.max_witnesses:
            yield Fault(path, "nothing is known of the maximum where the devices are too small")
        return
    if slots != needed:
        yield Fault("partitions", f"they use {slots} devices, and {needed} are enough")
    for place, (partition, found, atoms) in enumerate(zip(plan.partitions, case.figures, case.atoms, strict=True)):
        if found.total_bytes > budgets[partition.slot] and not (atoms == 1 and found.total_bytes > widest):
            why = f"{found.total_bytes} bytes are over the {budgets[partition.slot]} of device {partition.slot}"
            yield Fault(f"partitions[{place}].nodes", why)
    used = budgets[:slots]
    limits = [min(bound - 1, budget) for budget in used]
    if bound > case.largest(widest):
        yield Fault(path, f"it is {bound}, and the largest partition has {case.largest(widest)}")
    elif bound and _holds(case, limits, widest):
        yield Fault(path, f"it is {bound}, and these devices need no more than {bound - 1}")
    elif not _holds(case, [min(bound, budget) for budget in used], widest):
        yield Fault(path, f"it is {bound}, and these devices need more")
    if len(proof.max_witnesses) != (slots if bound else 0):
        why = f"{len(proof.max_witnesses)} witnesses do not prove a maximum on {slots} devices"
        yield Fault("certificate.max_witnesses", why)
    yield from _in_order(case, proof.max_witnesses, "certificate.max_witnesses", limits, widest)


def _holds(case: Case, limits: Sequence[int], widest: int) -> bool:
    reach = farthest(case.stretches, limits, widest)
    return (reach[-1] if reach else 0) == case.stretches.count


def _in_order(
    case: Case, witnesses: Sequence[Witness], path: str, limits: Sequence[int], widest: int
) -> Iterator[Fault]:
    """Yield what is wrong with one witness a device: each begins where the one before it stopped."""
    start = 0
    for row, witness in enumerate(witnesses):
        atoms = _atoms(case, witness)
        if row >= len(limits) or atoms is None or atoms[0] != start:
            why = f"{witness.first} .. {witness.rejected} do not begin where the last one ends {case.where}"
            yield Fault(f"{path}[{row}]", why)
            return
        start = atoms[1]
        size = case.stretches.footprint(atoms[0], atoms[1] + 1)
        yield from _misstated(witness, size, f"{path}[{row}][2]")
        if size <= limits[row] or (atoms[0] == atoms[1] and size > widest):
            yield Fault(f"{path}[{row}]", f"{size} bytes are not too much for device {row}")
