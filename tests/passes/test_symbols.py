"""Symbolic sizes: numbers, text and back, and which of several can be the largest."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from fx_partition.passes.symbols import Evaluator, Symbols, evaluate, from_text, to_expr, to_text, undominated

S = sympy.Symbol("s0", positive=True, integer=True)
T = sympy.Symbol("s33", positive=True, integer=True)
SIZES = [
    7, 4 * S, 4 * S * T + 12, S**2 * T, FloorDiv(S + 3, 4), 8 * FloorDiv(S * T, 3), Mod(S, 5),
    FloorDiv(S, 2) * Mod(T, 3),
    Max(S, FloorDiv(T, 2), 9), Min(128, 4 * S), 3 * FloorDiv(FloorDiv(S, 2), T),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_text_round_trip(size: sympy.Expr) -> None:
    read = from_text(to_text(size), [S, T])
    assert read == size
    for s, t in ((1, 1), (5, 2), (17, 40)):
        numbers = {S: s, T: t}
        assert evaluate(read, numbers) == evaluate(size, numbers) == int(sympy.sympify(size).subs(numbers))


@pytest.mark.parametrize("size", [Max(S, 3 * T), Min(S, T)], ids=str)
def test_torchs_own_maximum_reads_back_with_the_same_value(size: sympy.Expr) -> None:
    for s, t in ((1, 1), (5, 2), (17, 40)):
        numbers = {S: s, T: t}
        assert evaluate(from_text(to_text(size), [S, T]), numbers) == evaluate(size, numbers)


@pytest.mark.parametrize("size", [Max(S, 3 * T), Min(S, T)], ids=str)
def test_torchs_own_maximum_reads_back_equal(size: sympy.Expr) -> None:
    assert from_text(to_text(size), [S, T]) == size


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "s0.__class__", "[s0]", "lambda: 1", "s0 if s0 else 1", "open('f')", "s0(1)",
     "Max(s0, key=1)", "4*s1", "'s0'", "2.5", "s0 and 1", "(s0 := 3)"],
)  # fmt: skip
def test_text_that_is_code_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        from_text(text, [S])


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
    with pytest.raises(ValueError, match=r"'batch' is no symbol.*input_ids\.1, s0, s33"):
        symbols.bind({"batch": 1})
