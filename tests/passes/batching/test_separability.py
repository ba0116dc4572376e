"""Separable graphs give the same results when their rows run separately; others are refused by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.fx
import torch.nn.functional as F
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import FAMILIES, mark_batch

from fx_partition.common.errors import PartitionError
from fx_partition.passes.batching.separability import Separation, separate
from fx_partition.passes.capture.capture_model import capture, from_graph
from fx_partition.passes.capture.captured_graph import CapturedGraph, value_of
from fx_partition.passes.capture.symbolic_sizes import to_expr

QUICK = ["mlp", "gpt2", "vit"]
SLOW = ["resnet18", "mobilenetv2", "bert", "llama", "t5", "unet"]
BATCH = 5  # unlike other sizes


def traced(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[torch.fx.GraphModule, list[Any]]:
    """What Dynamo gives a backend for a call: the graph, and the real inputs, parameters included."""
    found: list[tuple[torch.fx.GraphModule, list[Any]]] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append((gm, inputs))
        return gm.forward

    torch.compile(call, backend=backend, fullgraph=True)(*args, **kwargs)
    ((gm, inputs),) = found
    return gm, [BATCH if isinstance(value, torch.SymInt) else value for value in inputs]


def proven(call: Callable[..., Any], *args: Tensor) -> Separation:
    mark_batch((args, {}))
    gm, _ = traced(call, *args)
    return separate(from_graph(gm))


def rows_apart(
    captured: CapturedGraph, separation: Separation, inputs: Sequence[Any], blocks: Sequence[int]
) -> list[Any]:
    """The graph's results, run block of rows by block of rows and joined."""
    placeholders = captured.gm.graph.find_nodes(op="placeholder")
    names = [node.name for node in placeholders]
    batch = (separation.symbol, *separation.equal)
    sizes = {n.name for n in placeholders if isinstance(v := value_of(n), torch.SymInt) and str(to_expr(v)) in batch}
    parts, start = [], 0
    for rows in blocks:
        mine = [
            rows
            if name in sizes
            else value.narrow(separation.inputs[name], start, rows)
            if name in separation.inputs
            else value
            for name, value in zip(names, inputs, strict=True)
        ]
        result = captured.gm(*mine)
        parts.append(result if isinstance(result, (tuple, list)) else (result,))
        start += rows
    return [
        each[0] if dim is None else torch.cat(each, dim)
        for each, dim in zip(zip(*parts, strict=True), separation.outputs, strict=True)
    ]


def assert_same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
        else:
            assert a == b


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_families_are_separable_and_their_rows_run_apart(name: str) -> None:
    family = FAMILIES[name]
    args, kwargs = mark_batch(family.inputs(5))
    with torch.no_grad(), torch._dynamo.config.patch(**family.dynamo_config):
        gm, inputs = traced(family.build(), *args, **kwargs)
        captured = from_graph(gm)
        separation = separate(captured)
        expected = gm(*inputs)
        found = rows_apart(captured, separation, inputs, (2, 3))
    assert any(dim is not None for dim in separation.outputs)
    assert_same(found, expected)


# ---- What mixes rows

X = (BATCH, 4)  # the batch and a width


class _Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count


def _two(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 2, 2)


MIXING: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "batch norm in training": (nn.BatchNorm1d(4, track_running_stats=False).train(), "batch_norm"),
    "running statistics": (nn.BatchNorm1d(4).train(), "add_"),
    "mean over the batch": (lambda x: x - x.mean(0), "mean"),
    "sum over everything": (lambda x: x * x.sum(), "sum"),
    "softmax along the batch": (lambda x: x.softmax(0), "softmax"),
    "cumsum along the batch": (lambda x: x.cumsum(0), "cumsum"),
    "sort along the batch": (lambda x: x.sort(0)[0], "sort"),
    "a loss": (lambda x: F.mse_loss(x, x.relu()), "mse_loss"),
    "a loss over classes": (lambda x: F.cross_entropy(x, x.argmax(-1)), "nll_loss"),
    "dropout in training": (nn.Dropout(0.5).train(), "dropout"),
    "random numbers": (lambda x: x + torch.rand_like(x), "rand"),
    "a gram matrix": (lambda x: x @ (x.t() @ x), "matmul"),
    "scores between rows": (lambda x: (x @ x.t()).softmax(-1) @ x, "matmul"),
    "cat along the batch": (lambda x: torch.cat([x, x]), "cat"),
    "index by rows into rows": (lambda x: x[x.argmax(-1)], "index"),
    "index by a mask": (lambda x: x.masked_fill(x > 0, 0).index_select(0, torch.tensor([1, 0])), "index_select"),
    "as many rows as the batch happens to have": (
        lambda x: x.clone().index_put_((torch.arange(x.shape[0]),), torch.ones(BATCH, 4)), "index_put_"
    ),
    "a flattened batch": (lambda x: _two(x).flatten(0, 1), "flatten"),
    "topk over all tokens": (lambda x: _two(x).flatten(0, 1).topk(3, 0)[0], "topk"),
    "softmax over all tokens": (lambda x: _two(x).reshape(-1, 2).softmax(0).view(x.shape), "softmax"),
    "the first row": (lambda x: x + x[0], "getitem"),
    "a part of the rows": (lambda x: x[:2], "getitem"),
    "rows reversed": (lambda x: x.flip(0), "flip"),
    "rows rolled": (lambda x: x + x.roll(1, 0), "roll"),
    "the number of rows": (lambda x: x / x.shape[0], "truediv"),
    "the numbers of rows": (lambda x: x + torch.arange(x.shape[0])[:, None], "add"),
    "rows as channels": (lambda x: F.layer_norm(x.t(), x.shape[:1]).t(), "layer_norm"),
    "repeated rows": (lambda x: x.repeat(2, 1), "repeat"),
    "rows padded": (lambda x: F.pad(x, (0, 0, 1, 0))[:-1], "pad"),
    "causal over rows": (lambda x: x.tril(), "tril"),
    "scatter between rows": (lambda x: x.scatter(0, x.argsort(1), x), "scatter"),
    "a written buffer": (_Statistics(), "add_"),
}


@pytest.mark.parametrize("case", list(MIXING))
def test_mixing_is_refused_by_the_operators_name(case: str) -> None:
    call, operator = MIXING[case]
    with torch.no_grad(), pytest.raises(PartitionError) as refused:
        proven(call, torch.randn(X))
    text = str(refused.value)
    assert operator in text and "microbatches=1" in text, text


def test_the_error_for_a_graph_without_a_batch_says_how_to_mark_one() -> None:
    gm, _ = traced(lambda x: x.relu(), torch.randn(X))
    with pytest.raises(PartitionError, match=r"no batch to cut.*mark_dynamic.*microbatches=1"):
        separate(from_graph(gm))


# ---- What keeps them apart

_FOUR, _HEADS = nn.Linear(4, 4), torch.randn(2, 2)

APART: dict[str, Callable[[Tensor], Any]] = {
    "tokens flattened and back": lambda x: _FOUR(x.view(-1, 4)).view(x.shape),
    "heads flattened and back": lambda x: (_two(x).reshape(-1, 2) @ _HEADS).view(x.shape[0], 2, 2),
    "softmax": lambda x: x.softmax(-1),
    "layer norm": nn.LayerNorm(4),
    "batch norm": nn.BatchNorm1d(4).eval(),
    "attention": lambda x: F.scaled_dot_product_attention(_two(x)[:, None], _two(x)[:, None], _two(x)[:, None]),
    "embedding": lambda x: F.embedding(x.argsort(-1), _FOUR.weight),
    "the batch moved": lambda x: _two(x).permute(1, 2, 0).relu(),
    "a class token": lambda x: torch.cat([_HEADS[:1].expand(x.shape[0], 1, 2), _two(x)], 1),
    "the last of each row": lambda x: _two(x)[torch.arange(x.shape[0]), x.argmax(-1) % 2],
    "scores of a row": lambda x: _two(x) @ _two(x).transpose(1, 2),
    "a loss of each row": lambda x: F.mse_loss(x, x.relu(), reduction="none"),
    "several results": lambda x: (x.relu(), x.mean(-1), None, 3),
}


@pytest.mark.parametrize("case", list(APART))
def test_what_keeps_rows_apart_is_accepted(case: str) -> None:
    x = torch.randn(X)
    mark_batch(((x,), {}))
    with torch.no_grad():
        gm, inputs = traced(APART[case], x)
        captured = from_graph(gm)
        separation = separate(captured)
        assert_same(rows_apart(captured, separation, inputs, (3, 2)), gm(*inputs))


def test_an_input_that_is_written_is_written_row_by_row() -> None:
    def call(x: Tensor, cache: Tensor) -> Tensor:
        cache[:, 1] = x
        return cache.sum(1)

    separation = proven(call, torch.randn(X), torch.zeros(5, 3, 4))
    assert len(separation.written) == 1 and separation.outputs == (0,)


def test_an_exported_model_is_cut_along_the_dimension_it_names() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    captured = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(X), ({0: batch},))
    assert (separate(captured).inputs, separate(captured).outputs) == ({"input_1": 0}, (0,))


# ---- Soundness: whatever is accepted gives the same for rows that run apart

Step = tuple[str, int, int, int]  # operator, two operands (from the end), a dimension


def _weight(x: Any, shape: Sequence[int]) -> Tensor:
    return torch.linspace(-1, 1, int(torch.Size(shape).numel())).view(*shape)


def _linear(x: Any, width: int) -> Any:
    return F.linear(x, _weight(x, (3, width)))


# Of (value, another value, a dimension, the batch, the width of the value): all kinds that a model is made of.
OPERATORS: dict[str, Callable[[Any, Any, int, Any, int], Any]] = {
    "relu": lambda x, y, d, b, w: x.relu(),
    "add": lambda x, y, d, b, w: x + y,
    "mul": lambda x, y, d, b, w: x * y,
    "where": lambda x, y, d, b, w: torch.where(x > y, x, y),
    "by_batch": lambda x, y, d, b, w: x * b,
    "softmax": lambda x, y, d, b, w: x.softmax(d),
    "cumsum": lambda x, y, d, b, w: x.cumsum(d),
    "sort": lambda x, y, d, b, w: x.sort(d)[0],
    "argsort": lambda x, y, d, b, w: x.argsort(d).float(),
    "topk": lambda x, y, d, b, w: x.topk(2, d)[0],
    "amax": lambda x, y, d, b, w: x.amax(d),
    "mean": lambda x, y, d, b, w: x.mean(d, keepdim=True),
    "sum": lambda x, y, d, b, w: x.sum(d),
    "centre": lambda x, y, d, b, w: x - x.mean(d, keepdim=True),
    "flip": lambda x, y, d, b, w: x.flip(d),
    "roll": lambda x, y, d, b, w: x.roll(1, d),
    "transpose": lambda x, y, d, b, w: x.transpose(d, -1),
    "permute": lambda x, y, d, b, w: x.permute(2, 0, 1),
    "flatten": lambda x, y, d, b, w: x.flatten(0, 1),
    "flatten_last": lambda x, y, d, b, w: x.flatten(-2),
    "tokens": lambda x, y, d, b, w: x.reshape(-1, w),
    "rows": lambda x, y, d, b, w: x.reshape(b, -1),
    "split_rows": lambda x, y, d, b, w: x.reshape(b, 2, -1),
    "split_tokens": lambda x, y, d, b, w: x.reshape(2, b, -1),
    "unsqueeze": lambda x, y, d, b, w: x.unsqueeze(d),
    "squeeze": lambda x, y, d, b, w: x.squeeze(d),
    "narrow": lambda x, y, d, b, w: x.narrow(d, 0, 2),
    "select": lambda x, y, d, b, w: x.select(d, 1),
    "chunk": lambda x, y, d, b, w: x.chunk(2, d)[1],
    "cat": lambda x, y, d, b, w: torch.cat([x, y], d),
    "stack": lambda x, y, d, b, w: torch.stack([x, y], d),
    "matmul": lambda x, y, d, b, w: x @ y,
    "gram": lambda x, y, d, b, w: x @ y.transpose(-1, -2),
    "linear": lambda x, y, d, b, w: _linear(x, w),
    "layer_norm": lambda x, y, d, b, w: F.layer_norm(x, (w,)),
    "expand": lambda x, y, d, b, w: x.unsqueeze(0).expand(2, -1, -1),
    "repeat": lambda x, y, d, b, w: x.repeat(2, 1),
    "interleave": lambda x, y, d, b, w: x[:, None].expand(-1, 2, -1).reshape(-1, w),
    "gather": lambda x, y, d, b, w: x.gather(d, x.argsort(d)),
    "gather_other": lambda x, y, d, b, w: x.gather(d, y.argsort(d)),
    "scatter": lambda x, y, d, b, w: x.scatter(d, x.argsort(d), y),
    "lookup": lambda x, y, d, b, w: F.embedding(x.argsort(-1), _weight(x, (64, 3))),
    "by_rank": lambda x, y, d, b, w: x[x.argsort(0)[:, 0]],
    "own_row": lambda x, y, d, b, w: x[torch.arange(b), y.argmax(-1) % 2],
    "numbers": lambda x, y, d, b, w: x + torch.arange(b)[:, None],
    "shared_table": lambda x, y, d, b, w: _weight(x, (4, 3))[x.argsort(-1) % 4],
    "index_select": lambda x, y, d, b, w: x.index_select(d, torch.tensor([1, 0, 1])),
    "pad": lambda x, y, d, b, w: F.pad(x, (1, 0, 0, 1)),
    "tril": lambda x, y, d, b, w: x.tril(),
    "diagonal": lambda x, y, d, b, w: x.diagonal(0, 0, d),
    "zeros": lambda x, y, d, b, w: x + x.new_zeros(b, 1),
    "attention": lambda x, y, d, b, w: F.scaled_dot_product_attention(x, y, x),
    "write": lambda x, y, d, b, w: x.clone().index_put_((torch.tensor([0, 1]),), y),
    "write_column": lambda x, y, d, b, w: x.clone().copy_(y),
    "unfold": lambda x, y, d, b, w: x.unfold(d, 2, 1),
    "mse": lambda x, y, d, b, w: F.mse_loss(x, y),
}  # fmt: skip


def apply(steps: Sequence[Step], widths: Sequence[int], x: Any, z: Any) -> Any:
    """The results of a program: its last two values. Traced by torch.fx as well as run."""
    batch, values = x.shape[0], [x, z]
    for (name, a, b, dim), width in zip(steps, widths, strict=True):
        first, second = values[-1 - a % len(values)], values[-1 - b % len(values)]
        values.append(OPERATORS[name](first, second, dim, batch, width))
    return tuple(values[-2:])


def runnable(steps: Sequence[Step], x: Tensor, z: Tensor) -> tuple[list[Step], list[int]]:
    """The steps that run on these inputs, one after another, and the width of what each works on."""
    kept: list[Step] = []
    widths: list[int] = []
    for step in steps:
        values = [x, z, *(apply(kept[: i + 1], widths[: i + 1], x, z)[-1] for i in range(len(kept)))]
        first = values[-1 - step[1] % len(values)]
        width = first.shape[-1] if first.dim() else 0
        try:
            apply([*kept, step], [*widths, width], x, z)
        except (RuntimeError, IndexError, TypeError):
            continue
        kept.append(step)
        widths.append(width)
    return kept, widths


step = st.tuples(st.sampled_from(sorted(OPERATORS)), st.integers(0, 2), st.integers(0, 3), st.integers(-2, 2))


def check_sound(steps: Sequence[Step]) -> bool:
    """Whether a program is accepted; it fails where that is wrong."""
    rng = torch.Generator().manual_seed(0)
    x, z = (torch.randn(5, *rest, generator=rng) for rest in ((3,), (2, 3)))
    kept, widths = runnable(steps, x, z)

    class Program(nn.Module):
        def forward(self, x: Tensor, z: Tensor) -> Any:
            return apply(kept, widths, x, z)

    batch = torch.export.Dim("batch", min=2)
    gm = torch.fx.symbolic_trace(Program())
    try:
        captured = capture(gm, (x, z), ({0: batch}, {0: batch}))
        separation = separate(captured)
    except PartitionError:
        return False
    more = [torch.randn(7, *t.shape[1:], generator=rng) for t in (x, z)]
    assert_same(rows_apart(captured, separation, more, (2, 3, 2)), gm(*more))
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, min_size=1, max_size=5))
def test_whatever_is_accepted_gives_the_same_for_rows_apart(steps: list[Step]) -> None:
    event("accepted" if check_sound([("relu", 0, 0, 0), ("relu", 2, 0, 0), *steps]) else "refused")


def test_a_row_number_picks_its_row_and_nothing_else() -> None:
    """Of a table whose size is another symbol, or of the places within a row, it would mean other things."""

    def own_place(x: Tensor, table: Tensor) -> Tensor:
        return table[torch.arange(x.shape[0]), x.argmax(-1) % 2]

    def diagonal(x: Tensor, square: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        return square[rows, rows]

    torch._dynamo.mark_dynamic(table := torch.randn(6, 3), 0)
    for call, other in ((own_place, table), (own_place, torch.randn(6, 3)), (diagonal, torch.randn(BATCH, 9))):
        x = torch.randn(X)
        torch._dynamo.mark_dynamic(x, 0)
        if call is diagonal:
            torch._dynamo.mark_dynamic(other, 0)
        with pytest.raises(PartitionError, match="getitem"):
            separate(from_graph(traced(call, x, other)[0]))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_each_operator_of_the_soundness_check_is_sound_alone(name: str) -> None:
    for operand in (0, 1):
        for other in (0, 1):
            for dim in range(-2, 3):
                check_sound([("relu", 1, 0, 0), ("relu", 1, 0, 0), (name, operand, other, dim), ("relu", 0, 0, 0)])


def test_the_soundness_check_accepts_something() -> None:
    relu = [("relu", 1, 0, 0), ("relu", 1, 0, 0)]
    assert check_sound([*relu, ("linear", 0, 0, 0), ("softmax", 0, 0, -1), ("relu", 1, 0, 0)])
    assert not check_sound([*relu, ("softmax", 1, 0, 0), ("relu", 1, 0, 0)])
