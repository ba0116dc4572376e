"""Weights go straight to the GPU of their stage: a model that no single GPU can hold runs on several."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.backends.lowering import torch_internals

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices, as the software GPU has")

WIDTH, LAYERS = 1536, 16
LAYER = WIDTH * WIDTH * 4  # bytes
FIRST, SECOND = "cuda:0", "cuda:1"
PLAIN: dict[str, Any] = {"l2_persistence": False, "cuda_graphs": False}  # no memory but that of the weights


class Layers(nn.Module):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, device=device) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.fixture(autouse=True)
def eager_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run as they are written: what is tested is where their weights are."""
    monkeypatch.setattr(torch_internals, "compile_fx", lambda gm, inputs, config_patches=None: lambda *args: gm(*args))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"layers.{i}.weight": torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for i in range(LAYERS)}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, WIDTH)


@pytest.fixture
def right(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    model = Layers("cpu")
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(x)


@pytest.fixture
def small_gpus() -> Iterator[None]:
    """Each GPU has room for 13 layers of the 16; cuBLAS takes the room of four."""
    gc.collect()
    torch.cuda.empty_cache()
    for device in (FIRST, SECOND):
        total = torch.cuda.get_device_properties(device).total_memory
        most = 13 * LAYER + torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(most / total, device)
    yield
    for device in (FIRST, SECOND):
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def used() -> list[int]:
    """The layers on each GPU: blocks of the size of one or more; cuBLAS's workspaces have another size."""
    gc.collect()
    found = [0, 0]
    for segment in torch.cuda.memory_snapshot():
        for block in segment["blocks"]:
            if block["state"] == "active_allocated" and block["requested_size"] % LAYER == 0:
                found[segment["device"]] += block["requested_size"] // LAYER
    return found


def test_without_a_second_gpu_it_does_not_fit(small_gpus: None) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Layers(FIRST)


def test_from_a_checkpoint_to_the_gpus_of_the_stages(
    small_gpus: None, weights: dict[str, Tensor], x: Tensor, right: Tensor, tmp_path: Path
) -> None:
    file = tmp_path / "model.pt"
    torch.save(weights, file)
    model = Layers("meta").eval()
    fx_partition.load_stage_weights(model, file, device=FIRST)
    before = used()
    with fx_partition.pipeline(model, x.to(FIRST), devices=[FIRST, SECOND], **PLAIN) as pipe:
        assert [now - then for now, then in zip(used(), before, strict=True)] == [8, 8]
        torch.testing.assert_close(pipe(x.to(FIRST)).cpu(), right, rtol=1e-3, atol=1e-4)
        with pytest.raises(RuntimeError, match="needs all weights"):
            model(x.to(FIRST))


@pytest.mark.parametrize("device", [FIRST, "cpu"])
def test_a_lazy_model_that_moves_is_spread_over_the_gpus(
    small_gpus: None, weights: dict[str, Tensor], x: Tensor, right: Tensor, device: str
) -> None:
    model = Layers("meta").eval()
    fx_partition.load_stage_weights(model, weights, device=device)
    x = x.to(device)
    with fx_partition.pipeline(model, x, devices=[FIRST, SECOND], move=True, **PLAIN) as pipe:
        torch.testing.assert_close(pipe(x).cpu(), right, rtol=1e-3, atol=1e-4)
    assert [str(layer.weight.device) for layer in model.layers] == [FIRST] * 8 + [SECOND] * 8
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), weights[name])


def test_a_model_on_the_first_gpu_gives_its_memory_back(weights: dict[str, Tensor], x: Tensor, right: Tensor) -> None:
    before = used()
    model = Layers(FIRST).eval()
    model.load_state_dict(weights)
    x = x.to(FIRST)
    shares = []
    for move in (False, True):
        with fx_partition.pipeline(model, x, devices=[FIRST, SECOND], move=move, **PLAIN) as pipe:
            torch.testing.assert_close(pipe(x).cpu(), right, rtol=1e-3, atol=1e-4)
            shares.append([now - then for now, then in zip(used(), before, strict=True)])
            del pipe
    assert shares == [[16, 8], [8, 8]]
    model.cpu()
    assert used() == before


def test_what_is_written_after_the_move_reaches_the_stages(weights: dict[str, Tensor], x: Tensor) -> None:
    model = Layers("cpu").eval()
    with torch.no_grad(), fx_partition.pipeline(
        model, x, devices=[FIRST, SECOND], move=True, **PLAIN
    ) as pipe:
        for scale in (1.0, 1.05):
            model.load_state_dict({name: scale * weight for name, weight in weights.items()})
            reference = Layers("cpu")
            reference.load_state_dict({name: scale * weight for name, weight in weights.items()})
            torch.testing.assert_close(pipe(x), reference(x), rtol=1e-3, atol=1e-4)
