"""From a plan to the document that the text and the Markdown report lay out."""

from __future__ import annotations

from fx_partition.passes.plan import Oversize, Partition, Plan
from fx_partition.passes.sizes import format_bytes

from .document import Document, Section, code, count, shortened
from .headline import has_budget, headline
from .proof import proof_sections
from .shapes import shape_sections
from .table import partition_table

CLOSING = "Footprints are for inference; under grad, tensors saved for backward add to them."

# Values named at a peak; the rest is one sum.
_MOST_VALUES = 4


def contents(plan: Plan) -> Document:
    """Everything a report says of one plan, in the order in which a reader asks."""
    if not plan.partitions:
        return Document(headline(plan), (), CLOSING)
    sections = [
        Section("Partitions", table=partition_table(plan)),
        _totals(plan),
        *shape_sections(plan),
        Section("Fullest step of each partition", points=tuple(map(_peak, plan.partitions))),
        *(proof_sections(plan) if has_budget(plan) else ()),
    ]
    if plan.oversize:
        lead = f"Each needs more than {format_bytes(plan.budget_bytes)} by itself, so its partition spills:"
        sections.append(Section("Oversize", lead, points=shortened(map(_oversize, plan.oversize))))
    if plan.unknown_workspace:
        lead = "No rule says what these allocate while they run; they count as none:"
        sections.append(Section("Unknown workspace", lead, points=tuple(map(code, plan.unknown_workspace))))
    return Document(headline(plan), tuple(sections), CLOSING)


def _totals(plan: Plan) -> Section:
    points = [
        f"partitions: {plan.num_partitions}",
        f"largest: {_exactly(plan.max_bytes)}",
        f"cut (received from other partitions): {_exactly(plan.cut_bytes)}",
    ]
    if has_budget(plan):
        points.append(f"spill (streamed from off-chip each call): {_exactly(plan.spill_bytes)}")
    return Section("Totals", f"Algorithm {plan.algorithm}, objective {plan.objective}.", points=tuple(points))


def _exactly(number: int) -> str:
    return format_bytes(number) if number < 1024 else f"{format_bytes(number)} ({number} bytes)"


def _peak(partition: Partition) -> str:
    named = [f"{code(name)} {format_bytes(size)}" for name, size in partition.resident[:_MOST_VALUES]]
    others = partition.resident[_MOST_VALUES:]
    if others:
        named.append(f"{count(len(others), 'other')} {format_bytes(sum(size for _, size in others))}")
    if partition.workspace_bytes:
        named.append(f"workspace {format_bytes(partition.workspace_bytes)}")
    return f"{partition.index}: {code(partition.peak_node)}" + (f", with {', '.join(named)}" if named else "")


def _oversize(atom: Oversize) -> str:
    first, *more = atom.nodes
    name = code(first) + (f" (+{len(more)} that stay with it)" if more else "")
    return (
        f"{name}: {format_bytes(atom.total_bytes)} = weights {format_bytes(atom.weight_bytes)} + inputs "
        f"{format_bytes(atom.input_bytes)} + outputs {format_bytes(atom.output_bytes)} + workspace "
        f"{format_bytes(atom.workspace_bytes)}"
    )
