"""Symbolic sizes: numbers, text and back, and which of several can be the largest."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import (
    BitwiseFn_bitwise_or,
    FloorDiv,
    Mod,
    OpaqueUnaryFn_sqrt,
    PowByNatural,
    TruncToInt,
)

from fx_partition import PartitionError
from fx_partition.passes.capture.symbolic_sizes import Evaluator, Symbols, evaluate, to_expr, undominated

S = sympy.Symbol("s0", positive=True, integer=True)
T = sympy.Symbol("s33", positive=True, integer=True)


def test_numbers_stay_numbers() -> None:
    assert to_expr(sympy.Integer(8)) == 8 and isinstance(to_expr(sympy.Integer(8)), int)
    assert Evaluator([4, 8 * S, 4])({S: 3}) == [4, 24, 4]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6))
def test_undominated_keeps_every_largest_and_no_more_than_it_must(rows: list[tuple[int, int, int]]) -> None:
    sizes = [to_expr(a * S * T + b * S + sympy.Integer(c)) for a, b, c in rows]
    kept = undominated(sizes)
    for s in (1, 2, 7, 100):
        for t in (1, 3, 50):
            numbers = {S: s, T: t}
            assert max(Evaluator(kept)(numbers)) == max(Evaluator(sizes)(numbers))
    assert len(set(kept)) == len(kept) <= len(set(sizes)) + 1


def test_undominated_drops_what_can_never_be_largest() -> None:
    assert undominated([4 * S, 8 * S, 8 * S]) == (8 * S,)
    assert set(undominated([4 * S, 100])) == {4 * S, 100}
    assert undominated([5, 9, 7]) == (9,)


def test_bindings_by_symbol_and_by_input() -> None:
    symbols = Symbols({S: 2, T: 16}, {"input_ids.1": T})
    assert symbols.bind() == {S: 2, T: 16}
    assert symbols.bind({"input_ids.1": 64, "s0": 3}) == {S: 3, T: 64}
    with pytest.raises(ValueError, match=r"'batch' is not a symbol.*input_ids\.1, s0, s33"):
        symbols.bind({"batch": 1})


def test_the_remainder_of_a_sum_is_that_of_all_of_it() -> None:
    """sympy prints ``Mod(a + b, c)`` as ``a + b % c``."""
    sizes = [Mod(S + 3, 8), Mod(S + 3, 2 * T), T * Mod(S, T + 1), Mod(S, S + T - 1) ** 2]
    assert Evaluator(sizes)({S: 6, T: 4}) == [1, 1, 4, 36]


def test_functions_that_sizes_of_graphs_have() -> None:
    sizes = [BitwiseFn_bitwise_or(S, 1), TruncToInt(OpaqueUnaryFn_sqrt(S)), PowByNatural(2, S)]
    assert Evaluator(sizes)({S: 10}) == [11, 3, 1024]


@pytest.mark.parametrize(
    "size",
    [1 / (S - 3), FloorDiv(T, S - 3), Mod(T, S - 3), OpaqueUnaryFn_sqrt(2 - S), PowByNatural(T, S * 10**9)],
    ids=str,
)
def test_a_size_without_a_value_says_for_which_numbers(size: sympy.Expr) -> None:
    with pytest.raises(PartitionError, match="a size has no value for s0=3"):
        evaluate(size, {S: 3, T: 7})
