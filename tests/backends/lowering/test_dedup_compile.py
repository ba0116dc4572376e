"""Of equal stages only the first is compiled, and all run its code."""

import pytest

from fx_partition.backends.lowering.dedup_compile import compile_deduplicated, first_with_same_key


def test_the_first_of_each_kind_is_compiled_in_order() -> None:
    seen: list[int] = []
    keys = ["b", "a", "b", "c", "a"]
    codes = compile_deduplicated(keys, lambda i: seen.append(i) or object(), "test")
    assert seen == [0, 1, 3]
    assert [codes.index(code) for code in codes] == first_with_same_key(keys) == [0, 1, 0, 3, 1]


def test_no_stage_is_no_work() -> None:
    assert compile_deduplicated([], lambda i: i, "test") == first_with_same_key([]) == []


def test_what_compiling_raises_comes_out_at_once() -> None:
    seen: list[int] = []

    def compile_one(index: int) -> None:
        seen.append(index)
        raise KeyError(index)

    with pytest.raises(KeyError):
        compile_deduplicated([1, 2], compile_one, "test")
    assert seen == [0]
