"""Each workspace rule against what the profiler sees of the real kernel; where that depends on the processor, what
planning measures instead."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from workspace_cases import CASES, MEASURED_CASES, MORE_CASES, Case, as_fake, last, peak_of, predicted

from fx_partition.hardware.processor import cpu_capabilities
from fx_partition.passes.capture.fake_tensors import hint_of, new_fake_mode
from fx_partition.passes.footprint.op_effects import observe
from fx_partition.passes.workspace.rules import RULES

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from allocations import measure_calls  # benchmarks is not a package

SYMBOLIC = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_softmax",
    "aten::convolution",
    "aten::kthvalue",
    "aten::mean",
    "aten::mm",
    "aten::sort",
)
# Calls on a batch, whose size is the only symbol.
BATCHED: dict[str, Callable[[int], Case]] = {
    "conv": lambda n: (F.conv2d, (torch.rand(n, 16, 32, 32), torch.rand(32, 16, 3, 3))),
    "conv channels last": lambda n: (F.conv2d, (last(n, 16, 32, 32), last(32, 16, 3, 3))),
    "attention": lambda n: (F.scaled_dot_product_attention, tuple(torch.rand(3, n, 4, 256, 64).unbind())),
    "layer_norm": lambda n: (F.layer_norm, (torch.rand(n, 32, 64).mT, (32,))),
    "softmax": lambda n: (torch.softmax, (torch.rand(n, 64, 32).mT, -1)),
    "encoder layer": lambda n: (
        lambda x, w: F.gelu(x @ w).mT.softmax(-1),
        (torch.rand(n, 32, 64), torch.rand(64, 256)),
    ),
}

# The rules were read and fitted on torch 2.13, and hold on 2.14. Until then this one is otherwise:
OLDER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
OTHERWISE = {"encoder layer": "torch 2.11 cannot multiply by a matrix with a symbolic batch on fakes"}
# Estimates of what depends on the processor were fitted to kernels of these; the figures that are measured were not.
FITTED = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
    and bool(cpu_capabilities().get("avx512_bf16") or cpu_capabilities().get("amx_bf16"))
    and "ONEDNN_MAX_CPU_ISA" not in os.environ
    and not OLDER
)


def names(every: Iterable[str]) -> list[Any]:
    """Parameters; on an older torch, what is known to be otherwise must be so."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=OTHERWISE[name]))
        if OLDER and name in OTHERWISE
        else name
        for name in every
    ]


# The cases whose rule is an estimate, and which are measured where that can be.
ESTIMATED = (
    "aten::_grouped_mm",
    "aten::convolution",
    "aten::mkldnn_rnn_layer",
    "attention bfloat16",
    "linear bfloat16, few rows",
    "lstm one item",
    *(name for name in MORE_CASES if name.startswith("conv") and "double" not in name),
)


class _Dispatched(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


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


def pairs(name: str, *, measure: bool) -> list[tuple[int, int]]:
    """For each case the bytes predicted, and those that the profiler sees."""
    torch.manual_seed(0)
    cases = [build() for build in (CASES | MORE_CASES | MEASURED_CASES)[name]]
    ranges = measure_calls([(str(i), lambda c=case: c[0](*c[1])) for i, case in enumerate(cases)])
    return [(predicted(case, measure=measure), real.peak) for case, real in zip(cases, ranges, strict=True)]


@pytest.mark.parametrize("name", [*sorted(CASES), *MORE_CASES, *MEASURED_CASES])
def test_the_prediction_bounds_the_real_peak(name: str) -> None:
    found = pairs(name, measure=True)
    assert all(real <= bound <= 1.1 * real + 65536 for bound, real in found), f"(predicted, real): {found}"


@pytest.mark.skipif(not FITTED, reason="estimates were fitted to oneDNN's kernels for AVX-512 with bfloat16")
@pytest.mark.parametrize("name", ESTIMATED)
def test_an_estimate_bounds_the_real_peak(name: str) -> None:
    found = pairs(name, measure=False)
    assert all(real <= bound <= 1.1 * real + 65536 for bound, real in found), f"(predicted, real): {found}"


@pytest.mark.parametrize("rule", SYMBOLIC)
def test_symbolic_sizes_give_the_same_number_and_no_guard(rule: str) -> None:
    for build in CASES[rule]:
        case, env = build(), ShapeEnv()
        bound = peak_of(case, new_fake_mode(env), lambda symbol, env=env: hint_of(env, symbol), dynamic=True)
        assert bound == predicted(case)
        assert env.guards == []


@pytest.mark.parametrize("name", names(BATCHED))
def test_a_symbolic_batch_holds_for_other_batches(name: str) -> None:
    function, args = BATCHED[name](4)
    env = ShapeEnv()
    mode = new_fake_mode(env)

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        kinds = [DimDynamic.STATIC] * leaf.dim()
        if leaf.size(0) == 4:
            kinds[0] = DimDynamic.DYNAMIC
        return mode.from_tensor(leaf, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))

    peaks = observe(function, pytree.tree_map(convert, args), {}, mode).peaks
    assert env.guards == []
    assert any(isinstance(peak, sympy.Expr) for peak in peaks)
    for batch in (4, 16, 64):
        bound = max(int(peak.subs(dict.fromkeys(peak.free_symbols, batch))) for peak in map(sympy.sympify, peaks))
        assert bound == predicted(BATCHED[name](batch), measure=False)
