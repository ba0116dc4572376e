"""Make the document of a plan, which the text and the Markdown report lay out."""

from __future__ import annotations

from fx_partition.common.units import format_bytes
from fx_partition.passes.constraints.module_boundaries import NODES
from fx_partition.passes.partitioner.pareto import Tradeoff
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.records import Oversize, Partition
from fx_partition.passes.plan.request import DEVICE, ON_CHIP
from fx_partition.passes.slicing.rewrite import Slicing

from .document import Document, Section, Table, code, count, shortened
from .headline import headline
from .partition_table import partition_table
from .proof_sections import proof_sections
from .shape_sections import shape_sections

CLOSING = "Footprints are for inference; under grad, tensors saved for backward add to them."

_OFFER = (
    "For each number of partitions the smallest maximum, and the fewest bytes cut within the budget "
    '(objective="traffic" takes that, max_slack= allows what lies between):'
)

# The number of values named at a peak; the others are one sum.
_MOST_VALUES = 4


def contents(plan: Plan) -> Document:
    """Return the report on one plan; its sections are in the order of a reader's questions."""
    if not plan.partitions:
        return Document(headline(plan), (), CLOSING)
    sections = [
        Section("Partitions", table=partition_table(plan)),
        _totals(plan),
        *shape_sections(plan),
        _fullest(plan),
        *((_tradeoffs(plan),) if len(plan.tradeoffs) > 1 else ()),
        *(proof_sections(plan) if plan.has_budget else ()),
    ]
    if plan.slicings:
        lead = "Larger than the budget whole, so these are computed in parts, each with its share of the weight:"
        sections.append(Section("Sliced", lead, points=shortened(map(_slicing, plan.slicings))))
    if plan.oversize:
        lead = f"Each needs more than {format_bytes(plan.budget_bytes)} by itself, so its partition spills:"
        sections.append(Section("Oversize", lead, points=shortened(map(_oversize, plan.oversize))))
    if plan.unknown_workspace:
        lead = "No rule says what these allocate while they run; they count as none:"
        sections.append(Section("Unknown workspace", lead, points=tuple(map(code, plan.unknown_workspace))))
    if plan.estimated_workspace:
        lead = "What these allocate while they run depends on the processor and was not measured, so it is an estimate:"
        sections.append(Section("Estimated workspace", lead, points=tuple(map(code, plan.estimated_workspace))))
    return Document(headline(plan), tuple(sections), CLOSING)


def _totals(plan: Plan) -> Section:
    points = [
        f"partitions: {plan.num_partitions}{_distinct(plan)}",
        f"largest: {_exactly(plan.max_bytes)}",
        f"cut (received from other partitions): {_exactly(plan.cut_bytes)}",
    ]
    if plan.has_budget:
        spill = "over (beyond the devices)" if plan.memory == DEVICE else "spill (streamed from off-chip each call)"
        points.append(f"{spill}: {_exactly(plan.spill_bytes)}")
    slack = "" if plan.max_slack is None else f", max_slack {plan.max_slack:g}"
    how = f"Algorithm {plan.algorithm}, objective {plan.objective}{slack}, footprint {plan.footprint}{_counted(plan)}."
    return Section("Totals", how, points=tuple(points))


def _counted(plan: Plan) -> str:
    """Return the memory and the boundaries that were asked for, where they are not the default."""
    memory = "" if plan.memory == ON_CHIP else f", memory {plan.memory} (weights count whole)"
    if plan.boundaries == NODES:
        return memory
    whole = "" if isinstance(plan.boundaries, str) else f", whole: {', '.join(map(code, plan.boundaries))}"
    return f"{memory}, boundaries between modules{whole}"


def _distinct(plan: Plan) -> str:
    """Return the number of distinct compiled partitions, if known: ", 3 distinct (alike ones share their code)"."""
    if plan.num_distinct is None or plan.num_partitions == 1:
        return ""
    shared = " (alike ones share their code)" if plan.num_distinct < plan.num_partitions else ""
    return f", {plan.num_distinct} distinct{shared}"


def _tradeoffs(plan: Plan) -> Section:
    """Return a section on other plans, in which this plan is marked."""
    table = Table(
        headers=("partitions", "largest", "cut", ""),
        numeric=(True, True, True, False),
        rows=tuple(
            (str(row.num_partitions), format_bytes(row.max_bytes), format_bytes(row.cut_bytes), _mark(plan, row))
            for row in plan.tradeoffs
        ),
    )
    return Section("What other plans offer", _OFFER, table=table)


def _mark(plan: Plan, row: Tradeoff) -> str:
    return "this plan" if row == (plan.num_partitions, plan.regular_max_bytes, plan.cut_bytes) else ""


def _exactly(number: int) -> str:
    return format_bytes(number) if number < 1024 else f"{format_bytes(number)} ({number} bytes)"


_ADDED_UP = (
    "Footprints add up what every step makes and allocates, as if nothing were freed before the end of its partition. "
    'In truth a value is freed when no later step needs it, so footprint="peak", what is in memory at one time, is '
    "less. The largest results of each partition:"
)


def _fullest(plan: Plan) -> Section:
    """Return a section on the contents of each partition at its peak."""
    if plan.footprint == "sum":
        return Section("What adds up", _ADDED_UP, points=tuple(map(_peak, plan.partitions)))
    return Section("Fullest step of each partition", points=tuple(map(_peak, plan.partitions)))


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
        f"{format_bytes(atom.workspace_bytes)}" + (f"; not sliced: {atom.why_whole}" if atom.why_whole else "")
    )


def _slicing(slicing: Slicing) -> str:
    joined = "side by side" if slicing.axis == "outputs" else "added up"
    return f"{code(slicing.node)}: {slicing.parts} parts over its {slicing.axis}, {joined}"
