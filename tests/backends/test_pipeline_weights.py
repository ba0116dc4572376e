"""A pipeline whose length is dynamic runs prompts and tokens on the model's own weights, which exist once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition.backends import pipeline as entry
from fx_partition.backends.streaming.program import ProgramStep
from fx_partition.backends.threads.aoti_compile import Code, _with_handles
from fx_partition.hardware.cores import allowed_cores

WIDTH, LENGTH = 16, 32


class Decoder(nn.Module):
    """Four layers, each with attention over its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        for layer in range(4):
            self.register_buffer(f"cache_{layer}", torch.zeros(1, LENGTH, WIDTH))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        for layer, (keys, out) in enumerate(zip(self.keys, self.out, strict=True)):
            cache = getattr(self, f"cache_{layer}")
            cache.index_copy_(1, position, keys(x))
            x = x + out(torch.softmax(x @ cache.transpose(1, 2), -1) @ cache)
        return x


def test_prompts_and_tokens_read_the_models_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[int, set[int]] = {}

    def compile_steps(steps: Sequence[ProgramStep], *_: Any) -> list[Code]:
        return [Code(None, _with_handles(watched(step), step)) for step in steps]

    def watched(step: ProgramStep) -> Callable[..., Any]:
        weights = [place for place, value in enumerate(step.inputs) if isinstance(value, Tensor)]

        def call(*inputs: Any) -> Any:
            read.setdefault(step.index, set()).update(inputs[place].data_ptr() for place in weights)
            return step.module(*inputs)

        return call

    monkeypatch.setattr(entry, "compile_steps", compile_steps)
    torch.manual_seed(0)
    model, eager = Decoder().eval(), Decoder().eval()
    eager.load_state_dict(model.state_dict())
    own = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    length = torch.export.Dim("length", min=2, max=LENGTH)  # torch.export makes a length of 1 a number
    example = torch.randn(1, 12, WIDTH), torch.arange(12)
    cores = [f"cores:{core}" for core in (*allowed_cores(), *allowed_cores())[:2]]
    with (
        torch.no_grad(),
        fx_partition.pipeline(
            model, example, devices=cores, dynamic_shapes=({1: length}, {0: length})
        ) as pipe,
    ):
        assert pipe.plan.num_partitions == 2
        for start, rows in ((0, 12), (12, 2), (14, 2)):
            read.clear()
            x, position = torch.randn(1, rows, WIDTH), torch.arange(start, start + rows)
            assert torch.allclose(pipe(x, position), eager(x, position), atol=1e-6)
            assert set().union(*read.values()) == set(own), "a stage reads other memory than the model's"
            assert sum(own[address].nbytes for found in read.values() for address in found) == sum(
                tensor.nbytes for tensor in own.values()
            )
