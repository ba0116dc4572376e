"""The stages of one rank, for its training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from fx_partition.common.errors import PartitionError
from fx_partition.passes.plan.plan import Plan

from .tied_weights import TiedWeights

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


class PipelineStages(Sequence["PipelineStage"]):
    """The stages of this rank in order; pass ``list(stages)`` to a schedule.

    Attributes:
        plan: the plan of the whole model.

    Example::

        >>> stages = fx_partition.to_pipeline_stages(model, microbatch)                    # doctest: +SKIP
        >>> optimizer = torch.optim.AdamW(stages.parameters())                             # doctest: +SKIP
    """

    def __init__(self, plan: Plan, stages: Sequence[PipelineStage], tied: TiedWeights) -> None:
        self.plan = plan
        self._stages = tuple(stages)
        self._tied = tied

    @overload
    def __getitem__(self, index: int) -> PipelineStage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PipelineStage]: ...
    def __getitem__(self, index: int | slice) -> PipelineStage | Sequence[PipelineStage]:
        return self._stages[index]

    def __len__(self) -> int:
        return len(self._stages)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The module of each stage."""
        return tuple(stage.submod for stage in self._stages)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of this rank, each once, with their names in the model."""
        seen: set[str] = set()
        for module in self.modules:
            names: dict[nn.Parameter, list[str]] = {}
            for name, parameter in module.named_parameters(remove_duplicate=False):
                names.setdefault(parameter, []).append(name)
            for parameter, own in names.items():
                if seen.isdisjoint(own):
                    yield own[0], parameter
                seen.update(own)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of this rank, each once, for an optimizer."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and buffers of this rank by the model's keys; all ranks together have the model's."""
        return {key: value for module in self.modules for key, value in module.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load this rank's parameters and buffers from the state_dict of the whole model; ignore all other keys.

        Raises:
            PartitionError: keys are missing; the message names some.
        """
        missing = [key for key in self.state_dict() if key not in state_dict]
        if missing:
            raise PartitionError(
                f"the state_dict lacks {len(missing)} keys that the stages of this rank hold, {', '.join(missing[:3])} "
                "among them; load the state_dict of the whole model"
            )
        for module in self.modules:
            module.load_state_dict({key: state_dict[key] for key in module.state_dict()})

    @torch.no_grad()
    def reduce_tied_gradients(self) -> None:
        """Add up the gradients of weights that several stages read (embedding and head), over all ranks.

        Call it once on every rank, after the last ``schedule.step`` and before ``optimizer.step``. It does nothing if
        the model has no such weights.
        """
        self._tied.reduce()
