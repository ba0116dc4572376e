"""Each workspace rule against what the profiler sees of the real kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from workspace_cases import CASES, Case

from fx_partition.passes.effects import observe
from fx_partition.passes.fake import FakeTensorMode, hint_of, new_fake_mode
from fx_partition.passes.workspace_rules import RULES

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from allocations import measure_calls  # benchmarks/ is no package

pytestmark = pytest.mark.slow  # some rules are still out of bounds; `make test-all` shows which

OUT_OF_BOUNDS: dict[str, str] = {}
SYMBOLIC = ("aten::_softmax", "aten::kthvalue", "aten::mean")


class _Dispatched(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def as_fake(args: Any, mode: FakeTensorMode, *, dynamic: bool = False) -> Any:
    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        kind = DimDynamic.DYNAMIC if dynamic else DimDynamic.STATIC
        context = StatelessSymbolicContext(dynamic_sizes=[kind] * leaf.dim()) if mode.shape_env else None
        return mode.from_tensor(leaf, symbolic_context=context)

    return pytree.tree_map(convert, args)


def peak_of(case: Case, mode: FakeTensorMode, bind: Callable[[sympy.Symbol], int], *, dynamic: bool = False) -> int:
    """The highest peak that `observe` sees, with sizes that are symbols bound."""
    function, args = case
    peaks = map(sympy.sympify, observe(function, as_fake(args, mode, dynamic=dynamic), {}, mode).peaks)
    return max(int(peak.subs({symbol: bind(symbol) for symbol in peak.free_symbols})) for peak in peaks)


def predicted(case: Case) -> int:
    """A size that only the data decides is the real result's."""
    function, args = case
    return peak_of(case, new_fake_mode(ShapeEnv()), lambda _: int(function(*args).size(0)))


def dispatched(case: Case) -> set[str]:
    function, args = case
    mode = new_fake_mode(ShapeEnv())
    fake = as_fake(args, mode)
    with torch.no_grad(), mode, _Dispatched() as listing:
        function(*fake)
    return listing.names


def test_every_rule_has_cases() -> None:
    assert set(CASES) == set(RULES)
    assert {len(builders) for builders in CASES.values()} == {3}


@pytest.mark.parametrize("rule", sorted(CASES))
def test_cases_run_the_operator(rule: str) -> None:
    for build in CASES[rule]:
        assert rule in dispatched(build())


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=pytest.mark.xfail(strict=True, reason=OUT_OF_BOUNDS[rule]))
        if rule in OUT_OF_BOUNDS
        else rule
        for rule in sorted(CASES)
    ],
)
def test_rule_bounds_the_measured_peak(rule: str) -> None:
    torch.manual_seed(0)
    cases = [build() for build in CASES[rule]]
    ranges = measure_calls([(str(i), lambda c=case: c[0](*c[1])) for i, case in enumerate(cases)])
    pairs = [(predicted(case), measured.peak) for case, measured in zip(cases, ranges, strict=True)]
    assert all(real <= bound <= 1.1 * real + 65536 for bound, real in pairs), f"(predicted, measured): {pairs}"


@pytest.mark.parametrize("rule", SYMBOLIC)
def test_symbolic_sizes_give_the_same_number_and_no_guard(rule: str) -> None:
    for build in CASES[rule]:
        case, env = build(), ShapeEnv()
        bound = peak_of(case, new_fake_mode(env), lambda symbol, env=env: hint_of(env, symbol), dynamic=True)
        assert bound == predicted(case)
        assert env.guards == []
