"""Find the tensors between stages by running all stages on fake tensors with gradients: nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.fake_tensors import FakeTensorMode, ShapeEnv, has_symbolic_sizes, new_fake_mode
from fx_partition.passes.capture.module_members import all_tensors

from .stage_module import StageModule


@dataclass(frozen=True)
class StageInterface:
    """The tensors that a stage receives and sends: their shapes, dtypes, and whether a gradient comes back.

    Attributes:
        inputs, outputs: tensors on the meta device, in order.
        splits: whether the backward of its inputs can run separately from that of its weights. It cannot if an output
            depends on weights alone: torch looks for weights on the paths from the inputs, and those are on none.
    """

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    splits: bool


def stage_interfaces(stages: Sequence[StageModule], inputs: Sequence[torch.Tensor]) -> list[StageInterface]:
    """Return the interface of each stage for one microbatch.

    Args:
        stages: all stages of the model.
        inputs: the tensors of one microbatch.

    Raises:
        PartitionError: a stage fails on its inputs, or a size between stages depends on data; the message names the
            stage.
    """
    mode = new_fake_mode(ShapeEnv())
    arriving: list[torch.Tensor] = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    found = []
    for index, stage in enumerate(stages):
        try:
            with mode, torch.enable_grad():
                results = torch.func.functional_call(stage, _fakes(mode, stage), tuple(arriving))
        except Exception as error:
            raise PartitionError(
                f"stage {index} fails on a microbatch of this shape: {type(error).__name__}: {error}"
            ) from error
        outputs = results if isinstance(results, tuple) else (results,)
        for i, tensor in enumerate(outputs):
            if has_symbolic_sizes(tensor):
                raise PartitionError(
                    f"tensor {i} that stage {index} sends has the data-dependent shape {list(tensor.shape)}, and "
                    "schedules need static shapes; keep its users in that stage with keep_together="
                )
        splits = _splits(arriving, outputs, is_last=index == len(stages) - 1)
        found.append(StageInterface(tuple(map(_meta, arriving)), tuple(map(_meta, outputs)), splits))
        with mode:
            arriving = [_buffer(tensor) for tensor in outputs]
    return found


def _fakes(mode: FakeTensorMode, stage: StageModule) -> dict[str, torch.Tensor]:
    """Return a fake for each parameter and buffer. A mode keeps its fakes by tensor, so tied ones have one fake."""
    tensors = all_tensors(stage, every_name=True)
    return {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in tensors.items()}


def _buffer(tensor: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return buffer.requires_grad_(tensor.requires_grad)


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    found = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return found.requires_grad_(tensor.requires_grad)


def _splits(inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor], *, is_last: bool) -> bool:
    """Return whether the gradient of every output reaches an input.

    For the last stage one output is enough, as the loss joins its outputs.
    """
    targets = {id(tensor) for tensor in inputs if tensor.requires_grad}
    reached = [_reaches(tensor, targets) for tensor in outputs if tensor.requires_grad]
    return any(reached) if is_last else all(reached)


def _reaches(tensor: torch.Tensor, targets: set[int]) -> bool:
    """Return whether the gradient of a tensor flows into one of the leaves ``targets``."""
    if id(tensor) in targets:
        return True
    stack: list[Any] = [tensor.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in targets:
            return True
        stack += (source for source, _ in node.next_functions)
    return False
