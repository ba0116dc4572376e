"""Warn of calls for which a plan does not hold: their sizes take a partition beyond its budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import sympy

from fx_partition.common.errors import PartitionWarning
from fx_partition.common.units import format_bytes

from .plan import ANY_SIZE, Plan


class PlanRange:
    """The sizes for which a plan's partitions are within their budgets.

    A runtime calls `check` once for each new combination of sizes, so that a call costs one look-up.
    """

    def __init__(self, plan: Plan, way_out: str) -> None:
        self._plan, self._way_out = plan, way_out
        self._symbols = set(plan.symbols.hints)
        self._warned = False

    @classmethod
    def of(cls, plan: Plan, way_out: str) -> PlanRange | None:
        """Return the range of a plan.

        It is None where there is nothing to warn of: no budget was given, no size matters, or the plan spills at its
        own sizes already.

        Args:
            way_out: what the user can do about a call beyond the range, the end of the warning's sentence.
        """
        varies = any(p.varies for p in plan.partitions)
        return cls(plan, way_out) if varies and plan.has_given_budget and plan.fits() else None

    def check(self, numbers: Mapping[sympy.Symbol, int]) -> None:
        """Warn once, of the first call whose sizes are beyond the range.

        Args:
            numbers: the sizes of a call by symbol; the plan's own stand for the rest.
        """
        if self._warned:
            return
        bind = {symbol.name: max(1, n) for symbol, n in numbers.items() if symbol in self._symbols}
        bound = self._plan.numbers(bind)
        over = {p.index: p.footprint(bound) - p.budget_bytes for p in self._plan.partitions}
        over = {index: size for index, size in over.items() if size > 0}
        if not over:
            return
        self._warned = True
        sizes = ", ".join(self._reach(name, number, bind) for name, number in bind.items())
        which = f"partition {next(iter(over))}" if len(over) == 1 else f"{len(over)} partitions"
        warnings.warn(
            f"a call is beyond the sizes for which its plan fits: {sizes}; {which} spilled "
            f"{format_bytes(sum(over.values()))}, and later calls may too; {self._way_out}",
            PartitionWarning,
            stacklevel=3,
        )

    def _reach(self, name: str, number: int, bind: Mapping[str, int]) -> str:
        dims = [dim for dim, symbol in self._plan.symbols.dims.items() if symbol.name == name]
        largest = self._plan.largest(name, bind)
        if largest >= ANY_SIZE:
            return f"{dims[0] if dims else name} is {number}"
        return f"{dims[0] if dims else name} is {number} and may be at most {largest}"
