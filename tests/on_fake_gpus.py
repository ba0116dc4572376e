"""Run whole models on GPUs that do not exist: fake tensors know their device and refuse to mix devices.

Numbers are not computed, devices are, by torch's own rules: an operator on two devices raises, as on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from cuda_fakes import FakeDriver
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from fx_partition.backends.dynamo import graph_compiler, partition_compiler
from fx_partition.backends.lowering import compile_stages
from fx_partition.backends.weights.device_copies import STORE

#: Source and target of a copy, and whether nobody waits for it.
Move = tuple[str, str, bool]


class FakeGpus:
    """What was seen.

    Attributes:
        compiled: for every stage that was compiled, the devices of what it was compiled with.
        moves: every ``Tensor.to`` that calls of compiled code made between stages.
    """

    def __init__(self) -> None:
        self.compiled: list[set[str]] = []
        self.moves: list[Move] = []

    def compile(self, gm: torch.fx.GraphModule, inputs: Sequence[Any], _: Any) -> Callable[..., Any]:
        """The stage as it is written."""
        self.compiled.append({str(value.device) for value in inputs if isinstance(value, Tensor)})
        return lambda *args: gm(*args)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpus]:
    """Four GPUs of which the first is the current one; stages run as they are written, without inductor."""
    found = FakeGpus()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    if torch.version.cuda is None:  # such a build refuses these two, on fake tensors as well
        monkeypatch.setattr(Tensor, "cuda", _cuda)
        monkeypatch.setattr(Tensor, "copy_", lambda self, *_, **__: self)
    monkeypatch.setattr(STORE, "_driver", FakeDriver())
    monkeypatch.setattr(compile_stages, "compile_part", found.compile)
    monkeypatch.setattr(graph_compiler, "compile_graph", found.compile)
    assemble = partition_compiler.assemble

    def watched(*args: Any) -> Callable[..., Any]:
        function = assemble(*args)

        def run(*inputs: Any) -> Any:
            with _Moves(found.moves):
                return function(*inputs)

        return run

    monkeypatch.setattr(partition_compiler, "assemble", watched)
    with FakeTensorMode(shape_env=ShapeEnv()), torch.no_grad():
        yield found


def _cuda(self: Tensor, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
    index = device if isinstance(device, int) else 0 if device is None else torch.device(device).index or 0
    return self.to(f"cuda:{index}", non_blocking=non_blocking, **options)


class _Moves(TorchFunctionMode):
    def __init__(self, found: list[Move]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.to:
            self._found.append((str(args[0].device), str(result.device), bool((kwargs or {}).get("non_blocking"))))
        return result


def linear(width: int, device: str) -> nn.Linear:
    """A layer on a device; initialising one there would need the device."""
    layer = nn.Linear(width, width, device="meta")
    for name, weight in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.empty(weight.shape, device=device)))
    return layer
