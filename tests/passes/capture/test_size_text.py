"""Sizes as text read back equal, and any other text is a size or is refused at once."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import (
    BitwiseFn_bitwise_or,
    CeilToInt,
    FloatTrueDiv,
    FloorDiv,
    Max,
    Min,
    Mod,
    ModularIndexing,
    OpaqueUnaryFn_sqrt,
    PythonMod,
    RoundToInt,
    ToFloat,
    TruncToInt,
)

from fx_partition import PartitionError
from fx_partition.passes.capture.size_text import SizeReader, from_text, to_text
from fx_partition.passes.capture.symbolic_sizes import Evaluator, evaluate

S = sympy.Symbol("s0", positive=True, integer=True)
T = sympy.Symbol("s33", positive=True, integer=True)
SIZES = [
    7, 0, -5, 4 * S, -S, 4 * S * T + 12, S**2 * T, 3 - S, S * (T + 1) ** 2, 8 * FloorDiv(S * T, 3), FloorDiv(S + 3, 4),
    Mod(S, 5), PythonMod(-S, 8), FloorDiv(S, 2) * Mod(T, 3), Max(S, FloorDiv(T, 2), 9), Min(128, 4 * S),
    3 * FloorDiv(FloorDiv(S, 2), T), Max(S, 3 * T), Min(S, T), ModularIndexing(S, 2, 3), BitwiseFn_bitwise_or(S, 1),
    24 * TruncToInt(1.5 * ToFloat(S)), CeilToInt(FloatTrueDiv(ToFloat(S), 0.7)), RoundToInt(1.7 * ToFloat(S)),
    TruncToInt(ToFloat(S) / 3 * 1.1), TruncToInt(OpaqueUnaryFn_sqrt(ToFloat(S))), sympy.floor(S / 2),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_size_of_a_graph_reads_back_equal(size: sympy.Expr) -> None:
    read = from_text(to_text(size), [S, T])
    assert read == size and type(read) is type(size)
    for s, t in ((1, 1), (5, 2), (17, 40)):
        numbers = {S: s, T: t}
        assert evaluate(read, numbers) == evaluate(size, numbers) == int(sympy.sympify(size).subs(numbers))
        assert SizeReader(numbers).read(to_text(size)) == (size, evaluate(size, numbers))


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_a_scale_reads_back_to_the_last_bit(scale: float) -> None:
    size = TruncToInt(sympy.Float(scale) * ToFloat(S))
    assert from_text(to_text(size), [S]) == size


CODE = [
    "__import__('os').system('true')", "s0.__class__", "[s0]", "lambda: 1", "s0 if s0 else 1", "open('f')", "s0(1)",
    "Max(s0, key=1)", "4*s1", "'s0'", "2.5", "s0 and 1", "(s0 := 3)", "s0 // 2", "s0 % 2", "~s0", "s0 @ s0", "s0, 1",
    "0x10", "1_000", "1e400", "s0\x00", "٣", "s0**²", "nan", "oo", "zoo", "I", "Where(s0, 1, 2)",
]  # fmt: skip
UNFINISHED = [
    "", "  ", "s0 +", "* s0", "(s0", "s0)", "s0 s0", "4s0", "Max()", "Max(s0", "Max", "FloorDiv(s0)", "s0**s0",
]  # fmt: skip
HUGE = [
    "9**9**9", "s0**9999999999", "s0**9999", "((s0**64)**64)**64", "*".join(["s0"] * 66), "9" * 20, "9" * 10_000,
    "(" * 500 + "1" + ")" * 500, "-" * 50_000 + "1", "FloorDiv(" * 100 + "s0" + ", 2)" * 100, "+".join(["s0"] * 50_000),
    "1e30 * s0", "9223372036854775808", f"Max({', '.join(map(str, range(101)))})",
]  # fmt: skip
UNDEFINED = [
    "1/0", "1/(s0 - s0)", "FloorDiv(s0, 0)", "Mod(s0, 1 - 1)", "FloorDiv(7, 0)", "Max(1, 2)", "PowByNatural(9, 9)",
]  # fmt: skip


@pytest.mark.parametrize("text", [*CODE, *UNFINISHED, *HUGE, *UNDEFINED], ids=lambda text: text[:20])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(PartitionError, match="is not a size: ") as error:
        from_text(text, [S])
    assert len(str(error.value)) < 500 and "the symbols (s0)" in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["s0**64", "9**9", "(9**9)**9", "--5", "-(-s0)", "PowByNatural(PowByNatural(9, s0), s0)", "RoundDecimal(s0, -s0)",
     "BitwiseFn_bitwise_or(1.5 * s0, 1)", "PowByNatural(1.5 * s0, 0.5 * s0)", "OpaqueUnaryFn_exp(s0) * 2",
     "FloatPow(-1.0 * s0, 0.5)", "OpaqueUnaryFn_log(1 - s0)", "1/(s0 - 1)", "ModularIndexing(s0, s0 - 1, 3)",
     "Max(" + ", ".join(f"{i}*s0 + {i * i}" for i in range(100)) + ")",
     "FloorDiv(" * 39 + "s0 + 1" + ", 3)" * 39, "*".join(f"(s0 + {i})" for i in range(60))],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_the_value_of_a_size_that_is_read_is_a_number_or_an_error(text: str) -> None:
    for number in (1, 3, 2**63 - 1):
        size, value = SizeReader({S: number}).read(text)
        evaluator = Evaluator([size])
        if value is None:
            with pytest.raises(PartitionError, match="a size has no value for s0="):
                evaluator({S: number})
        else:
            assert type(value) is int and evaluator({S: number}) == [value]
