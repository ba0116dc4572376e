"""Describe a symbolic plan for other shapes: footprints as expressions, and the sizes up to which it still fits."""

from __future__ import annotations

from collections.abc import Mapping

from fx_partition.passes.capture.size_text import to_text
from fx_partition.passes.capture.symbolic_sizes import explain_guess
from fx_partition.passes.plan.plan import ANY_SIZE, Plan
from fx_partition.passes.plan.records import Partition

from .document import Section, code, shortened

# A footprint is the maximum over the steps that can be its peak; the report shows the first of them, shortened.
_MOST_TERMS = 2
_MOST_CHARACTERS = 120


def shape_sections(plan: Plan) -> tuple[Section, ...]:
    """Return the sections on other shapes; none if the graph is static."""
    if not plan.bindings and not plan.symbols.unbacked:
        return ()
    totals = tuple(f"{p.index}: {code(_total(p))}" for p in plan.partitions)
    lead = "The footprint of each partition in bytes, over " + ", ".join(_bound_symbols(plan)) + ":"
    sections = [Section("Footprints for other shapes", lead, points=totals)]
    if plan.assumed:
        sections.append(Section("Assumed sizes", f"{explain_guess(plan.assumed)}."))
    if plan.has_budget:
        reach = tuple(_reach(plan, symbol) for symbol in _symbols(plan))
        lead = "Largest size of each dimension for which every partition stays within the budget, the others as now:"
        sections.append(Section("How far this plan fits", lead, points=reach))
    return tuple(sections)


def _symbols(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Return each symbol with the names of the dimensions that have its size."""
    symbols = [*plan.symbols.hints, *plan.symbols.unbacked]
    return {s.name: tuple(dim for dim, of in plan.symbols.dims.items() if of == s) for s in symbols}


def _bound_symbols(plan: Plan) -> list[str]:
    numbers = {symbol.name: number for symbol, number in plan.numbers().items()}
    return [
        f"{code(symbol)} = {' = '.join(map(code, dims)) or 'a size inside the graph'} ({_now(plan, symbol, numbers)})"
        for symbol, dims in _symbols(plan).items()
    ]


def _now(plan: Plan, symbol: str, numbers: Mapping[str, int]) -> str:
    if symbol in plan.bindings:
        return f"now {numbers[symbol]}"
    return f"{'taken to be' if symbol in plan.assumed else 'at most'} {numbers[symbol]}, known when it runs"


def _reach(plan: Plan, symbol: str) -> str:
    names = _symbols(plan)[symbol]
    largest = plan.largest(symbol)
    name = " = ".join(map(code, names)) or code(symbol)
    if largest >= ANY_SIZE:
        return f"{name}: any size"
    return f"{name}: up to {largest}" if largest else f"{name}: none fits"


def _total(partition: Partition) -> str:
    base = partition.weight + partition.state
    terms = list(dict.fromkeys(to_text(base + m.activation + m.workspace) for m in partition.moments))
    shown = shortened((_clipped(term) for term in terms), _MOST_TERMS)
    return shown[0] if len(terms) == 1 else f"Max({', '.join(shown)})"


def _clipped(term: str) -> str:
    return term if len(term) <= _MOST_CHARACTERS else f"{term[:_MOST_CHARACTERS]} ..."
