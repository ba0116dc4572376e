"""Values that cross a boundary have the strides that the next stage was compiled for, not those of the trace."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eager_stages import use_eager_stages
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.l2partition import l2partition
from fx_partition.backends.lowering import torch_internals
from fx_partition.backends.lowering.boundary_strides import in_order
from fx_partition.backends.lowering.layout_guard import Layout, LayoutError, LayoutGuard
from fx_partition.backends.lowering.torch_internals import to_handles
from fx_partition.backends.threads.build_extension import stage_loop
from fx_partition.hardware.cores import allowed_cores
from fx_partition.report.compiled_plans import compiled_graphs


class Gapped(nn.Module):
    """A permuted view with gaps crosses, and its layout is that of two more values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 24), nn.Parameter(torch.randn(8, 16))
        self.s = nn.Parameter(torch.randn(2, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        t = self.a(x).transpose(1, 2)[:, :8]
        y = t * self.b
        return y * self.s


class Blocks(nn.Module):
    """Convolutions and group norms in channels_last, as in a UNet of a diffusion model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Biased(nn.Module):
    """Attention with a learned bias: whether that needs a gradient decides which kernel runs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.bias, self.gain = nn.Parameter(torch.randn(1, 2, 8, 8)), nn.Parameter(torch.randn(2, 2, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.proj((o * self.gain).transpose(1, 2).reshape(b, s, d))  # type: ignore[no-any-return]


CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "gapped": (Gapped(), torch.randn(2, 16, 16)),
    "channels_last": (
        Blocks().to(memory_format=torch.channels_last), torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    ),
    "biased": (Biased(), torch.randn(2, 8, 16)),
}  # fmt: skip


def lie(graph: torch.fx.Graph, key: str) -> None:
    """Let a trace say that every tensor of three or more dimensions is laid out backwards."""
    for node in graph.nodes:
        value = node.meta.get(key)
        if node.op.startswith("call") and isinstance(value, Tensor) and value.dim() > 2:
            with value.fake_mode, torch.no_grad():  # type: ignore[attr-defined]
                node.meta[key] = torch.empty(value.shape[::-1], dtype=value.dtype).permute(*range(value.dim())[::-1])


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.stride() == expected.stride()
    assert expected.abs().max() > 0.1  # a model whose weights do not matter would pass


@pytest.mark.parametrize("name", list(CASES))
def test_compiled_stages_agree_on_strides(name: str) -> None:
    model, x = copy.deepcopy(CASES[name])
    torch._dynamo.reset()
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1, "report": False, "order": "trace"})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", fx_partition.PartitionWarning)
        for _ in range(2):
            assert_same(fast(x), model(x))
    (graph,) = compiled_graphs(model)
    assert graph.plan.num_partitions >= 3


@pytest.mark.parametrize("name", list(CASES))
def test_a_trace_that_lies_about_strides_does_no_harm(name: str) -> None:
    model, x = copy.deepcopy(CASES[name])

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        lie(gm.graph, "example_value")
        return l2partition(gm, inputs, options={"cache_bytes": 1, "report": False, "order": "trace"})

    torch._dynamo.reset()
    with torch.no_grad():
        assert_same(torch.compile(model, backend=backend)(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "together"), [("gapped", ["linear", "transpose", "slice_1"]), ("biased", ["linear", "unbind"])]
)
def test_stage_threads_agree_on_strides(name: str, together: list[str]) -> None:
    model, x = copy.deepcopy(CASES[name])
    graph = torch.export.export(model, (x,)).module()
    assert isinstance(graph, torch.fx.GraphModule)
    lie(graph.graph, "val")
    with warnings.catch_warnings():
        warnings.simplefilter("error", fx_partition.PartitionWarning)  # no stage may fall back to Python's lock
        options: dict[str, Any] = {"order": "trace", "replicate": False, "keep_together": [together]}
        pipe = fx_partition.pipeline(graph, x, cache_bytes=1, devices=["cores:0"] * 12, **options)
    with pipe, torch.no_grad():
        assert pipe.plan.num_partitions >= 3
        assert_same(pipe(x), model(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_view_as_another_dtype_keeps_it(dynamic: bool) -> None:
    class Bits(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            bits = (x * 2).view(torch.int32)
            return bits.reshape(-1, bits.shape[1])[1:] + 1, torch.relu(x)

    x = torch.randn(5, 8)
    torch._dynamo.reset()
    options = {"cache_bytes": 1, "report": False, "order": "trace"}
    fast = torch.compile(Bits(), backend="l2partition", dynamic=dynamic, options=options)
    with torch.no_grad():
        for mine, expected in zip(fast(x), Bits()(x), strict=True):
            assert torch.equal(mine, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_view_of_an_input_that_crosses_is_still_one(dynamic: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            part = x[:, ::2]
            return part[1:], torch.relu(x), part + 1

    x = torch.randn(5, 8)
    torch._dynamo.reset()
    options = {"cache_bytes": 1, "report": False, "order": "trace"}
    fast = torch.compile(Model(), backend="l2partition", dynamic=dynamic, options=options)
    with torch.no_grad():
        for mine, expected in zip(fast(x), Model()(x), strict=True):
            assert torch.equal(mine, expected) and mine.stride() == expected.stride()
        fast(x)[0].zero_()
    assert not x[1:, ::2].any() and x[0].all() and x[:, 1::2].all()


@pytest.mark.parametrize("later", [None, "sum"])
def test_a_view_of_an_input_that_its_stage_writes_is_still_one(
    later: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(x: Tensor) -> tuple[Tensor, ...]:
        x.index_copy_(0, torch.tensor([1, 3]), x[torch.tensor([1, 3])] * 0.5)
        turned = x.swapaxes(0, -1)
        return (turned, turned.sum(0)) if later else (turned,)

    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    x = torch.randn(5, 2, 4, 4).to(memory_format=torch.channels_last)
    expected = model(x.clone())
    fast = torch.compile(model, backend="l2partition", options={"cache_bytes": 1})
    with torch.no_grad():
        found = fast(x)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
    assert found[0].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_a_stage_that_reads_a_number_has_the_strides_of_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor takes the tensors of such numbers out, and traces again without them; other compilers leave them.
    monkeypatch.setattr(torch_internals, "compile_fx", lambda gm, *_, **__: gm.forward)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            left, right = (x * 0.5 + 1.0).split(4, 1)
            normed = self.norm(right)  # with sizes that vary its momentum is `item()` of a tensor
            return left.unsqueeze(0).expand(2, -1, -1), normed

    model, expected = Model(), Model()
    torch._dynamo.reset()
    together = [["add", "right"], ["normed", "expand"]]
    options = {"cache_bytes": 1, "report": False, "order": "trace", "keep_together": together}
    fast = torch.compile(model, backend="l2partition", dynamic=True, options=options)
    for rows in (5, 7):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            for mine, theirs in zip(fast(x), expected(x), strict=True):
                torch.testing.assert_close(mine, theirs)
    (graph,) = compiled_graphs(model)
    assert graph.plan.num_partitions >= 3
    assert any("normed" in part.nodes and "expand" in part.nodes for part in graph.plan.partitions)


def test_a_result_turned_in_a_region_of_torch_func_has_the_strides_of_eager_mode() -> None:
    def turned(x: Tensor) -> Tensor:
        tangent = torch.func.jvp(torch.tanh, (x,), (x,))[1]
        gradient = torch.func.grad(lambda t: (t * t).sum())(tangent)
        return gradient.transpose_(0, 1)

    x = torch.randn(5, 8)
    torch._dynamo.reset()
    fast = torch.compile(turned, backend="l2partition", options={"cache_bytes": 1, "report": False})
    with torch.no_grad():
        assert_same(fast(x), turned(x))


def test_a_tensor_that_is_in_order_is_not_copied() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert in_order(x, (0, 1, 2, 3)) is x
    last = x.to(memory_format=torch.channels_last)
    assert in_order(last, (0, 2, 3, 1)) is last
    assert in_order(x, (0, 2, 3, 1)).stride() == last.stride() == Layout((0, 2, 3, 1)).of(x.shape)
    assert torch.equal(in_order(x[:, ::2], (3, 1, 0, 2)), x[:, ::2])


def test_a_stage_that_breaks_its_promise_is_named_on_the_first_call_of_each_size() -> None:
    def stage(x: Tensor) -> list[Tensor]:
        return [x.t() if x.shape[0] == 3 else x]

    x = torch.randn(2, 4)
    guard = LayoutGuard(stage, 7, [("relu", Layout((0, 1)))], [x], [x])
    assert guard(x)[0] is x
    assert guard(torch.randn(3, 4))[0].stride() == (1, 4)  # static: the first call has shown it
    rows = torch.export.Dim("rows")
    program = torch.export.export(nn.ReLU(), (x,), dynamic_shapes=({0: rows},))
    value = next(iter(program.graph.nodes)).meta["val"]
    guard = LayoutGuard(stage, 7, [("relu", Layout((0, 1)))], [value], [value])
    guard(x)
    with pytest.raises(LayoutError, match=r"stage 7 returned relu of shape \(4, 3\) with strides \(1, 4\)"):
        guard(torch.randn(3, 4))
    ones = torch.empty_strided((1, 4), (77, 1))
    assert Layout((0, 1)).is_of(ones) and Layout((1, 0)).is_of(torch.empty(0, 4))


def test_the_threads_refuse_a_result_of_another_layout() -> None:
    loop = stage_loop()
    results = {True: lambda: torch.zeros(3, 2), False: lambda: torch.zeros(2, 3).t()}
    for is_right, make in results.items():
        pipe = loop.create([(None, (0,), [], (1,), [(0, 1)], (), 1)], 2, (1,), 1, 0)
        pending = loop.submit(pipe, (0,), to_handles([torch.zeros(1)]), [])
        loop.stop(pipe)
        # It pins its thread to a core.
        thread = threading.Thread(
            target=loop.serve, args=(pipe, 0, 0, allowed_cores()[:1], lambda _, make=make: to_handles([make()]))
        )
        thread.start()
        thread.join()
        _, failed, error = loop.take(pipe, pending)
        assert failed == (-1 if is_right else 0)
        assert (error is None) == is_right and (is_right or "laid out in another way" in str(error))
