"""Watch the sizes with which a compiled graph is called: its plan holds up to some of them.

The user either gets a warning of the first call beyond (`watch_sizes`) or, with ``replan=True``, another plan: the
sizes for which a plan holds become guards of the compiled graph (`guard_sizes`), so that Dynamo compiles the graph
again for a call beyond, and keeps both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import sympy

from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.fake_tensors import ShapeEnv, shape_env_of, sym_int
from fx_partition.passes.capture.symbolic_sizes import evaluate
from fx_partition.passes.plan.plan import Plan
from fx_partition.passes.plan.plan_range import PlanRange

# The most sizes of calls, and the most graphs, that are remembered; then all are forgotten.
_REMEMBERED = 4096


def watch_sizes(function: Callable[..., Any], captured: CapturedGraph, plan: Plan) -> Callable[..., Any]:
    """Return a function that warns once of a call beyond the sizes for which the plan fits.

    A call of sizes that were seen before costs a look-up in a set.

    Args:
        function: of the graph's inputs, among them its symbolic sizes as numbers.
    """
    limits = PlanRange.of(plan, "options={'replan': True} compiles another plan for such sizes")
    symbols = {symbol.name: symbol for symbol in plan.symbols.hints}
    places = {node.name: place for place, node in enumerate(captured.gm.graph.find_nodes(op="placeholder"))}
    inputs = {symbols[name]: places[n.name] for name, n in captured.symbol_inputs.items() if name in symbols}
    if limits is None or not inputs:
        return function
    sizes_of = itemgetter(*inputs.values())
    seen: set[Any] = set()

    def run(*args: Any) -> Any:
        sizes = sizes_of(args)
        if sizes not in seen:
            if len(seen) >= _REMEMBERED:
                seen.clear()
            seen.add(sizes)
            limits.check(dict(zip(inputs, sizes if isinstance(sizes, tuple) else (sizes,), strict=True)))
        return function(*args)

    return run


@dataclass(frozen=True)
class _Total:
    """The bytes of a partition at one of its peaks, and its budget."""

    bytes: sympy.Expr
    budget: int

    def fits(self, hints: Mapping[sympy.Symbol, int]) -> bool | None:
        """Return whether it is within its budget at these sizes; None where no guard can tell for other sizes."""
        is_known = self.bytes.free_symbols and self.bytes.free_symbols <= hints.keys()
        return evaluate(self.bytes, hints) <= self.budget if is_known else None

    def guard(self, env: ShapeEnv, hints: Mapping[sympy.Symbol, int]) -> None:
        """Guard that the answer of `fits` is the same for the sizes of each call."""
        bool(sym_int(env, self.bytes, evaluate(self.bytes, hints)) <= self.budget)


# The totals of the plans that fit, by graph and budgets: Dynamo does not tell a backend what it compiled before.
_PLANS: dict[tuple[object, ...], list[list[_Total]]] = {}


def guard_sizes(captured: CapturedGraph, plan: Plan) -> None:
    """Let Dynamo compile the graph again for sizes for which the plan does not fit.

    The footprints are compared with their budgets on symbolic sizes, and the answers are guards: this plan fits, and
    earlier plans of the graph do not. Without the second, Dynamo would use the newest plan for the small sizes too.
    """
    env = shape_env_of(captured.values.values())
    if env is None or not plan.has_given_budget:
        return
    hints = plan.symbols.hints
    if len(_PLANS) >= _REMEMBERED:
        _PLANS.clear()
    earlier = _PLANS.setdefault((plan.graph, plan.budget_bytes, plan.device_budgets), [])
    for totals in earlier:
        over = next((total for total in totals if total.fits(hints) is False), None)
        if over is not None:
            over.guard(env, hints)
    if not plan.fits():
        return
    own = [
        _Total(sympy.sympify(p.weight + p.state + m.activation + m.workspace), p.budget_bytes)
        for p in plan.partitions for m in p.moments
    ]  # fmt: skip
    for total in own:
        if total.fits(hints):
            total.guard(env, hints)
    if own not in earlier:
        earlier.append(own)
