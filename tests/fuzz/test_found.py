"""Small programs that the fuzzer found, and that gave wrong results once."""

from __future__ import annotations

import pytest

from .check import check
from .program import Program, Settings, Statement

#: By what went wrong: the statements, the results, and how the stages run.
FOUND: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "a view of an input as another dtype was a copy of it": (
        ("v1 = x0.view(torch.int32)", "v2 = x0 @ self.w1"),
        ("v1", "v2"),
        "eager",
    ),
    "a view of a result as another dtype was a copy of it": (
        ("v1 = self.b1 * x0", "v2 = v1.view(torch.int32)", "v3 = v2.view(torch.float32)"),
        ("v2", "v3"),
        "eager",
    ),
    "a view of a stage's copy was taken for a view of its argument": (
        (
            "v1 = torch.zeros(5, 16)",
            "v2 = F.linear(x0, self.w2)",
            "v1[:, 4:8] = v2",
            "v3 = v2[torch.tensor([4, 0, 1])] * 0.5 + 0.1",
            "v4 = v2[torch.tensor([4, 3])] * 0.5",
            "v5 = v2 > 0",
            "v2.masked_scatter_(v5, v2 * 0.5)",
            "v6, v7, = torch.split(v2, [2, 2], 1)",
        ),
        ("v6",),
        "dense",
    ),
    "a view of a written view had the shape of another": (
        ("v1 = x0.select(0, 0)", "v1.zero_()", "v2 = v1.transpose(0, -1)", "v3 = F.linear(x0, self.w1)"),
        ("v2", "v3"),
        "aot",
    ),
    "views of a view whose base is written were made again of the base": (
        ("v1 = x0.diagonal(1)", "x0.lerp_(x0, 0.5)", "v2, v3, v4, v5, v6, = v1.unbind(0)", "v7 = x0 @ self.w1"),
        ("v3", "v7"),
        "aot",
    ),
    "a view of what a stage writes with += was a copy of its own": (
        ("v1 = F.gelu(x0)", "v2 = v1.unflatten(-1, (2, 4)).transpose(-2, -3)", "v1 += x0 @ self.w1", "v3 = v2 > 0.5"),
        ("v3",),
        "eager",
    ),
    "a view of an input had the shape of another one that is written": (
        ("v1, v2, = x0.chunk(2, 1)", "v3 = x0.diagonal()", "v3.add_(0.25)", "v4 = v2.swapaxes(0, -1)"),
        ("v4",),
        "aot",
    ),
    "an expanded view whose base is written was made dense": (
        ("v1 = x0[..., :1].expand(5, 8)", "v2 = x0.abs_()", "v3 = v1[1:]", "v4 = x0 @ self.w1"),
        ("v3", "v4"),
        "aot",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_right(name: str) -> None:
    lines, results, stages = FOUND[name]
    members = {
        "b1": 'self.register_buffer("b1", rand(5, 8, seed=1))',
        "w1": "self.w1 = nn.Parameter(rand(8, 8, seed=2))",
        "w2": "self.w2 = nn.Parameter(rand(4, 8, seed=4) * 0.354)",
    }
    program = Program(
        0, members, {"x0": "rand(n, 8, seed=seed)"}, (), tuple(Statement(line, "found") for line in lines), results,
        "tuple", Settings(options={"cache_bytes": 537 if stages == "dense" else 1}, stages=stages),
    )  # fmt: skip
    (verdict,) = check(program.with_statements(program.statements), ("backend",))
    assert verdict.partitions > 1
    assert not verdict.fault, verdict.fault
