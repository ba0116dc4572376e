"""KV caches in every form that models give them: values as in eager mode, and state that goes with its sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_stages import use_eager_stages
from torch import Tensor, nn

from fx_partition.report.compiled_plans import compiled_graphs

WIDTH = 64


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def attend(self, x: Tensor, keys: Tensor) -> Tensor:
        scores = self.query(x) @ keys.transpose(1, 2)
        return self.out(torch.softmax(scores, -1) @ keys)


class Cached(Attention):
    """Writes its keys at a position of the cache that it is given."""

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        cache.index_copy_(1, position, self.query(x))
        return self.attend(x, cache)


class Window(Attention):
    """Keeps the last keys: the others move up by one."""

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        cache.copy_(torch.cat((cache[:, 1:], self.query(x)), 1))
        return self.attend(x, cache)


class Growing(Attention):
    """Returns a cache that is longer by one."""

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        grown = torch.cat((cache, self.query(x)), 1)
        return self.attend(x, grown), grown


class Buffers(nn.Module):
    """Two layers with caches among the buffers, and a counter that all share."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cached() for _ in range(2))
        for i in range(2):
            self.register_buffer(f"cache_{i}", torch.zeros(1, length, WIDTH))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = x + layer(x, getattr(self, f"cache_{i}"), self.position)
        self.position.add_(1)
        return x


def compiled(model: nn.Module, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    use_eager_stages(monkeypatch)
    torch._dynamo.reset()
    return torch.compile(model, backend="l2partition", **options, options={"cache_bytes": "24KiB"})


def state(model: Any) -> list[int]:
    """Return for each graph the most state of a partition; each partition that touches a cache holds all of it."""
    return [max(p.state_bytes for p in graph.plan.partitions) for graph in compiled_graphs(model)]


@pytest.mark.parametrize("how", ["input", "marked dynamic", "static address"])
def test_a_cache_that_is_passed_is_state_of_its_length(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Cached().eval()
    fast = compiled(model, monkeypatch)
    for length in (8, 12, 40):
        cache = torch.zeros(1, length, WIDTH)
        mine = cache.clone()
        if how == "marked dynamic":
            torch._dynamo.mark_dynamic(mine, 1)
        if how == "static address":
            torch._dynamo.mark_static_address(mine, guard=False)
        with torch.no_grad():
            for step in range(3):
                x, position = torch.randn(1, 1, WIDTH), torch.tensor([step])
                assert torch.allclose(fast(x, mine, position), model(x, cache, position), atol=1e-6)
        assert torch.allclose(mine, cache, atol=1e-6)
    plan = compiled_graphs(fast)[-1].plan
    assert 1 <= len(compiled_graphs(fast)) <= 2 and plan.num_partitions >= 2
    holders = [p for p in plan.partitions if p.state_bytes]
    assert holders
    (symbol,) = plan.symbols.hints
    assert all(partition.state.subs({symbol: 100}) == 100 * WIDTH * 4 for partition in holders)


def test_a_sliding_window_is_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Window().eval()
    fast = compiled(model, monkeypatch)
    cache = torch.randn(1, 16, WIDTH)
    mine = cache.clone()
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(1, 1, WIDTH)
            assert torch.allclose(fast(x, mine), model(x, cache), atol=1e-6)
    assert torch.allclose(mine, cache, atol=1e-6)
    assert state(fast) == [16 * WIDTH * 4]


def test_a_growing_cache_is_an_activation_of_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Growing().eval()
    fast = compiled(model, monkeypatch)
    cache = mine = torch.randn(1, 4, WIDTH)
    with torch.no_grad():
        for _ in range(5):
            x = torch.randn(1, 1, WIDTH)
            (y, cache), (my_y, mine) = model(x, cache), fast(x, mine)
            assert torch.allclose(my_y, y, atol=1e-6) and torch.allclose(mine, cache, atol=1e-6)
    assert len(compiled_graphs(fast)) == 2 and state(fast) == [0, 0]


def test_caches_and_a_counter_among_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, other = Buffers(16).eval(), Buffers(16).eval()
    other.load_state_dict(model.state_dict())
    fast = compiled(model, monkeypatch)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(1, 1, WIDTH)
            assert torch.allclose(fast(x), other(x), atol=1e-6)
    for mine, expected in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)
    assert int(model.position) == 4
    assert compiled_graphs(fast)[0].plan.num_partitions >= 3
